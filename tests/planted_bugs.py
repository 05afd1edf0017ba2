"""Do the tests notice? Plants small bugs one at a time in a copy of what is committed, and runs the tests against each.

    python -m tests.planted_bugs [--only name ... [--record]] [--jobs 1]

First the tests must pass without any bug; then each bug must make one of its tests fail. Ends with 1 where a bug was
not caught (a run that hangs or cannot be collected does not count). What a run of all bugs finds, or one with --record,
goes into the table `benchmarks/results/planted_bugs.md` and `.json`, which says at which commit each bug was last run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.planted import all_bugs
from tests.planted.bug import Bug
from tests.planted.runner import PROJECT_ROOT, Outcome, Run, copy_of, head, import_heavy_modules

RESULTS = PROJECT_ROOT / "benchmarks/results"
LIMIT_SECONDS = 240.0
LIMIT_SECONDS_WITHOUT_BUGS = 1500.0


@dataclass(frozen=True)
class Finding:
    """What the tests said to a bug."""

    bug: Bug
    outcome: Outcome

    @property
    def is_caught(self) -> bool:
        return bool(self.outcome.failed) and not self.outcome.broken

    @property
    def in_words(self) -> str:
        if self.is_caught:
            return f"caught by {self.outcome.failed[0]}: {self.outcome.reason}"
        return f"NOT CAUGHT: {self.outcome.broken or 'all its tests pass'}"


def main() -> int:
    arguments = _arguments()
    bugs = all_bugs()
    chosen = [bug for bug in bugs if not arguments.only or bug.name in arguments.only]
    unknown = set(arguments.only) - {bug.name for bug in bugs}
    if unknown:
        print(f"no such bug: {', '.join(sorted(unknown))}. There are: {', '.join(bug.name for bug in bugs)}.")
        return 2
    import_heavy_modules()
    commit = head()
    copies = [copy_of(commit) for _ in range(arguments.jobs)]
    try:
        if problems := _tests_that_do_not_pass(copies[0], chosen):
            print("without any bug, these tests must pass:", *problems, sep="\n  ")
            return 1
        findings = []
        for finding in _findings(chosen, copies):
            findings.append(finding)
            print(f"{finding.bug.name} ({finding.outcome.seconds:.0f} s): {finding.in_words}", flush=True)
            if arguments.record or not arguments.only:
                _record(finding, commit, bugs)
    finally:
        for copy in copies:
            shutil.rmtree(copy, ignore_errors=True)
    missed = [finding.bug.name for finding in findings if not finding.is_caught]
    print(f"{len(findings) - len(missed)} of {len(findings)} bugs caught", *missed, sep="\nmissed: ")
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.planted_bugs", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="name", help="these bugs alone")
    parser.add_argument("--record", action="store_true", help="with --only: write what is found into the table")
    parser.add_argument("--jobs", type=int, default=1, help="bugs at a time, each in a copy of its own")
    return parser.parse_args()


def _tests_that_do_not_pass(root: Path, bugs: list[Bug]) -> list[str]:
    """Tests that fail, or do not run here, without any bug: they could prove nothing."""
    for bug in bugs:
        bug.planted_in(root)
    # By file: a module is left once, with the process group that its tests share.
    tests = tuple(sorted({test for bug in bugs for test in bug.tests}))
    run = Run(root, tests, stop_at_first=False, limit_seconds=LIMIT_SECONDS_WITHOUT_BUGS)
    while (outcome := run.outcome()) is None:
        time.sleep(0.1)
    print(f"without any bug: {len(outcome.passed)} tests pass in {outcome.seconds:.0f} s", flush=True)
    silent = [test for test in tests if not any(_is_of(one, test) for one in outcome.passed)]
    problems = [f"{test} did not pass" for test in dict.fromkeys((*outcome.failed, *silent))]
    return problems + ([outcome.broken] if outcome.broken else [])


def _is_of(node_id: str, named: str) -> bool:
    return node_id == named or node_id.startswith((f"{named}[", f"{named}::"))


def _findings(bugs: list[Bug], copies: list[Path]) -> Iterator[Finding]:
    """One finding after another as they come, as many runs at a time as there are copies."""
    waiting, free, running = list(bugs), list(copies), []
    while waiting or running:
        while waiting and free:
            running.append(_Trial(waiting.pop(0), free.pop()))
        for trial in list(running):
            if (outcome := trial.run.outcome()) is not None:
                trial.take_out()
                running.remove(trial)
                free.append(trial.root)
                yield Finding(trial.bug, outcome)
        time.sleep(0.05)


class _Trial:
    """A bug in a copy, and the tests that run against it."""

    def __init__(self, bug: Bug, root: Path):
        self.bug, self.root = bug, root
        self._path = root / "openrlhf" / bug.file
        self._right_text = self._path.read_text(encoding="utf-8")
        self._path.write_text(bug.planted_in(root), encoding="utf-8")
        self.run = Run(root, bug.tests, stop_at_first=True, limit_seconds=LIMIT_SECONDS)

    def take_out(self) -> None:
        self._path.write_text(self._right_text, encoding="utf-8")


def _record(finding: Finding, commit: str, bugs: list[Bug]) -> None:
    """Into the table, in place of what it said of the bug before. Bugs that are no longer there leave it."""
    path = RESULTS / "planted_bugs.json"
    rows = {row["bug"]: row for row in json.loads(path.read_text(encoding="utf-8"))["bugs"]} if path.exists() else {}
    rows[finding.bug.name] = {
        "bug": finding.bug.name,
        "file": f"openrlhf/{finding.bug.file}",
        "breaks": finding.bug.breaks,
        "caught_by": finding.outcome.failed[0] if finding.is_caught else None,
        "seconds": finding.outcome.seconds,
        "commit": commit,
    }
    kept = [rows[bug.name] for bug in bugs if bug.name in rows]
    content = json.dumps({"command": "python -m tests.planted_bugs", "bugs": kept}, indent=1, ensure_ascii=False)
    path.write_text(content + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_markdown(kept, len(bugs)), encoding="utf-8")


def _markdown(rows: list[dict], num_bugs: int) -> str:
    num_caught = sum(row["caught_by"] is not None for row in rows)
    lines = [
        "# Planted bugs",
        "",
        f"{len(rows)} of {num_bugs} defined small wrong changes are run, {num_caught} of these {len(rows)} are caught.",
        "`python -m tests.planted_bugs` plants one at a time in a copy of a commit, and runs tests against it that",
        "pass without any bug.",
        "",
        "| bug | file | what a user would suffer | caught by | s | last run at |",
        "| --- | --- | --- | --- | ---: | --- |",
    ]
    for row in rows:
        test = f"`{row['caught_by']}`".replace("|", "\\|") if row["caught_by"] else "**nobody**"
        cells = [row["bug"], f"`{row['file']}`", row["breaks"], test, f"{row['seconds']:.0f}", row["commit"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
