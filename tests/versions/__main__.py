"""`python -m tests.versions`; see the package's text."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from openrlhf.versions import TRIED

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TESTS = ("tests/models", "tests/datasets", "tests/engine", "tests/checkpoint", "tests/zoo")
_ENDS = {"oldest": "lowest-direct", "newest": "highest"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.versions")
    parser.add_argument("ends", nargs="*", choices=[*_ENDS, []], help="default: both")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what to run in each")
    parser.add_argument("--folder", type=Path, help="where the environments are made, and found again")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="versions-") as scratch:
        for end in options.ends or _ENDS:
            environment = (options.folder or Path(scratch)) / end
            make_environment(environment, _ENDS[end])
            note(end, {"versions": versions_in(environment), **outcome_of(environment, options.tests)})
    return 0


def make_environment(folder: Path, resolution: str) -> None:
    """The package's dependencies at one end of their ranges, and what its tests need."""
    python = folder / "bin" / "python"
    if python.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    uv = [folder / "bin" / "uv", "pip", "install", "--quiet", "--python", python]
    torch = [f"torch=={TRIED['torch'][_ENDS['newest'] == resolution]}"]
    subprocess.run([*uv, *torch], check=True)
    subprocess.run([*uv, "--resolution", resolution, *torch, "-r", ROOT / "pyproject.toml"], check=True)
    frozen = folder / "frozen.txt"
    frozen.write_text(subprocess.check_output([folder / "bin" / "uv", "pip", "freeze", "--python", python], text=True))
    tools = ["pytest>=9,<10", "pytest-timeout", "hypothesis", "math-verify", "fastapi", "uvicorn"]
    subprocess.run([*uv, "--constraint", frozen, *tools], check=True)


def versions_in(environment: Path) -> dict[str, str]:
    ask = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {[*TRIED]}}}))"
    return json.loads(subprocess.check_output([environment / "bin" / "python", "-c", ask], text=True))


def outcome_of(environment: Path, tests: list[str]) -> dict:
    """Runs the tests in the environment, with extensions and caches of its own."""
    report = environment / "report.xml"
    own = {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "TORCH_EXTENSIONS_DIR": str(environment / "extensions"),
        "PYTHONPATH": str(ROOT),
    }
    command = [environment / "bin" / "python", "-m", "pytest", "--quiet", f"--junit-xml={report}", *tests]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return {
        "tests": " ".join(tests),
        "passed": sum(not [*case.iter("failure"), *case.iter("error"), *case.iter("skipped")] for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
        "failed": {f"{case.get('classname')}::{case.get('name')}": _why(case) for case in failed},
    }


def _why(case: ElementTree.Element) -> str:
    problem = case.find("failure") if case.find("failure") is not None else case.find("error")
    assert problem is not None
    return re.sub(r"\s+", " ", problem.get("message") or "")[:200]


def note(end: str, outcome: dict) -> None:
    """Adds it to versions.json, and writes the table anew."""
    file = RESULTS / "versions.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known[end] = outcome
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    (RESULTS / "versions.md").write_text(_page(known))


def _page(known: dict) -> str:
    ends = [end for end in _ENDS if end in known]
    rows = [f"| {name} | " + " | ".join(known[end]["versions"][name] for end in ends) + " |" for name in TRIED]
    for what in ("passed", "skipped", "failed"):
        counts = [known[end][what] for end in ends]
        shown = [str(len(count) if isinstance(count, dict) else count) for count in counts]
        rows.append(f"| tests {what} | " + " | ".join(shown) + " |")
    failures = [f"- {end}: `{test}`: {why}" for end in ends for test, why in known[end]["failed"].items()]
    head = ["# The ends of the ranges", "", "Made by `python -m tests.versions`, which ran:", ""]
    head += [f"- {end}: `{known[end]['tests']}`" for end in ends]
    table = ["", "| | " + " | ".join(ends) + " |", "| --- |" + " --- |" * len(ends), *rows, ""]
    return "\n".join([*head, *table, *failures]).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
