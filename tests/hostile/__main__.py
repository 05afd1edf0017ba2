"""All cases, or some: `python -m tests.hostile [--group NAME] [--name WORDS]`; see the package's text."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.helpers.fork_server import PROJECT
from tests.hostile.case import Judged
from tests.hostile.groups import all_cases
from tests.hostile.table import in_markdown
from tests.hostile.workspace import Originals

TABLE = PROJECT / "benchmarks/results/hostile.md"
NUM_CHARACTERS_SHOWN = 3000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", help="only this group")
    parser.add_argument("--name", default="", help="only cases whose name holds these words")
    chosen = parser.parse_args()
    cases = [(group, case) for group, case in all_cases() if chosen.group in (None, group) and chosen.name in case.name]
    judged = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        originals = Originals(Path(folder))
        for group, case in cases:
            one = originals.judge(group, case)
            judged.append(one)
            words = "; ".join(problem.words for problem in one.problems)
            print(f"{'FAILED' if words else 'ok':6} {one.came.seconds:5.1f} s  {group}: {case.name}", flush=True)
            if words:
                print(f"       {words}\n{one.came.said[-NUM_CHARACTERS_SHOWN:].replace(folder, '')}", flush=True)
    num_failed = sum(bool(one.problems) for one in judged)
    if len(cases) == len(all_cases()):
        TABLE.write_text(in_markdown([_of_any_machine(one, folder) for one in judged]), encoding="utf-8")
    print(f"{len(judged)} cases, {num_failed} failed")
    return 1 if num_failed else 0


def _of_any_machine(one: Judged, folder: str) -> Judged:
    """Without this machine's folders, name and times, which say nothing of a case."""
    said = one.came.said.replace(folder, "").replace(f"{PROJECT}/", "").replace(str(PROJECT), "the working folder")
    said = re.sub(" object at 0x[0-9a-f]+>", " object>", said)
    said = re.sub(r"process \d+ on \S+, since [\d-]+ [\d:]+ [+-]\d+", "process N on HOST, since THEN", said)
    return replace(one, came=replace(one.came, said=said))


if __name__ == "__main__":
    sys.exit(main())
