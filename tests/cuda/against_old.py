"""Do the cases of tests/cuda/findings.py fail where the findings were made? Each runs on an earlier tree, and on this.

    python -m tests.cuda.against_old --tree 063792e [--only 1 5]

A case must pass here, and fail there for the finding's own reason. Ends with 1 otherwise. A run of all cases writes
`benchmarks/results/gpu_findings.md`.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from tests.cuda.findings import CASES, PACKAGING, Case
from tests.equivalence.against_commit import PROJECT_ROOT, RESULTS, first_in_path, head, package_of
from tests.helpers.ranks import RankError, RankPool

PASSES = "passes"
LONGEST_MESSAGE = 400  # characters of the table


def main() -> int:
    arguments = _arguments()
    chosen = [case for case in CASES if not arguments.only or case.number in arguments.only]
    with tempfile.TemporaryDirectory() as scratch:
        tree = package_of(arguments.tree, Path(scratch) / "tree", *PACKAGING)
        now, then = (_said(chosen, root, Path(scratch)) for root in (PROJECT_ROOT, tree))
    rows = [_row(case, now[case], then[case]) for case in chosen]
    unproven = [case for case in chosen if now[case] != PASSES or case.seen not in then[case]]
    if len(chosen) == len(CASES):
        _write_table(arguments.tree, rows, len(unproven))
    print(f"{len(chosen) - len(unproven)} of {len(chosen)} pass here and fail at {arguments.tree} for their own reason")
    for case in unproven:
        print(f"not shown: {case}, whose failure holds {case.seen!r}")
    return 1 if unproven else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.against_old",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tree", default="063792e", metavar="commit", help="the earlier tree (default: 063792e)")
    parser.add_argument("--only", nargs="+", type=int, default=[], metavar="number", help="these findings alone")
    return parser.parse_args()


def _said(cases: list[Case], root: Path, scratch: Path) -> dict[Case, str]:
    """Of each case with the package below `root`: it passes, or the last line of its failure."""
    said = {}
    for ranks in sorted({case.ranks for case in cases}):
        with first_in_path(root), RankPool(ranks, imports_itself=True) as pool:
            for case in (case for case in cases if case.ranks == ranks):
                said[case] = _outcome(case, pool, root, Path(tempfile.mkdtemp(dir=scratch)))
                print(f"{root.name}: {case}: {said[case]}", flush=True)
    return said


def _outcome(case: Case, pool: RankPool, root: Path, folder: Path) -> str:
    try:
        reason = pool.run(case.why_not_shown, folder, root)[0]
    except RankError as error:
        return _reason(str(error))
    return f"cannot be shown here: {reason}" if reason else PASSES


def _reason(failure: str) -> str:
    """From the line that names the error of the first rank."""
    lines = [line for line in failure.split("\nrank ")[0].strip().splitlines() if line]
    begin = max(index for index, line in enumerate(lines) if not line.startswith(" "))
    return " ".join(line.strip() for line in lines[begin:])


def _row(case: Case, now: str, then: str) -> str:
    what = (case.run.__doc__ or "").splitlines()[0]
    now, then = (_in_short(text) for text in (now, then))
    return f"| {case.number} | `test_finding[{case}]`: {what} | {now} | {then} |"


def _in_short(text: str) -> str:
    """Without this machine's folders."""
    return re.sub(r"(?<![\w.:])/\S*/", "", text)[:LONGEST_MESSAGE].replace("|", "\\|")


def _write_table(commit: str, rows: list[str], num_unproven: int) -> None:
    lines = [
        "# What was found on GPU machines",
        "",
        f"{len(rows) - num_unproven} of {len(rows)} findings have a test in `tests/cuda/test_findings.py` that passes",
        f"today, and fails at commit {commit} for the finding's own reason: it drives both trees by what both have.",
        f"Made by `python -m tests.cuda.against_old --tree {commit}` at {head()}, with torch {torch.__version__} and",
        f"transformers {transformers.__version__}, without CUDA.",
        "",
        f"| finding | test | today | at {commit} |",
        "| ---: | --- | --- | --- |",
        *rows,
    ]
    (RESULTS / "gpu_findings.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
