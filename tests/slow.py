"""The tests that the test command leaves out because they take long: `python -m tests.slow`.

They are marked `slow`. Ends with 1 where one of them fails. What became of each stands in
`benchmarks/results/slow_tests.md`, with the commit and the processor; arguments are pytest's (`-k ray`), and a run with
arguments writes nothing down.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks import machine

RESULT = machine.ROOT / "benchmarks/results/slow_tests.md"


def main() -> int:
    arguments = sys.argv[1:]
    words = [sys.executable, "-m", "pytest", "-m", "slow", "-n", "2", "--dist", "loadfile", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = subprocess.run([*words, f"--junit-xml={report}"], cwd=machine.ROOT).returncode
        if not arguments and report.is_file():
            RESULT.write_text(table(ElementTree.parse(report)), encoding="utf-8")
            print(f"written: {RESULT}")
    return code


def table(report: ElementTree.ElementTree) -> str:
    """In Markdown. Args: report: pytest's, in JUnit's format."""
    cases = sorted(report.iter("testcase"), key=lambda case: (case.get("classname"), case.get("name")))
    outcomes = {case: outcome_of(case) for case in cases}
    commit, hardware = machine.commit(), machine.hardware()
    changed = " with changes" if commit["package_is_changed"] else ""
    num_passed = sum(outcome == "passed" for outcome in outcomes.values())
    lines = [
        "# Slow tests",
        "",
        f"`python -m tests.slow`, commit {commit['commit'][:10]}{changed}, {hardware['cores']} cores of "
        f"{hardware['processor']} ({', '.join(hardware['features'])}): {num_passed} of {len(cases)} passed.",
        "",
        "| test | outcome | s |",
        "| --- | --- | ---: |",
    ]
    for case, outcome in outcomes.items():
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        lines.append(f"| `{name}` | {outcome} | {float(case.get('time', 0)):.0f} |".replace("\n", " "))
    return "\n".join(lines) + "\n"


def outcome_of(case: ElementTree.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return f"{kind}: {found.get('message', '')[:200]}".replace("|", "\\|")
    return "passed"


if __name__ == "__main__":
    sys.exit(main())
