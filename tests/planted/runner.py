"""Runs tests on a copy of the committed tree in a forked process, into which the heavy imports were made once.

The parent imports nothing of the package: each child imports it anew, from its copy, with the bug in it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from dataclasses import asdict, dataclass, field
from pathlib import Path

HEAVY = (
    "pytest", "torch", "transformers", "datasets", "peft", "hypothesis.strategies", "safetensors.torch",
    *(f"transformers.models.{one}.modeling_{one}" for one in ("llama", "qwen3", "mixtral", "gpt2", "gemma2")),
)  # fmt: skip
PROJECT_ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What became of some tests."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    reason: str = ""  # the first failure's last line
    seconds: float = 0.0
    broken: str = ""  # why pytest itself did not come to an end: no test, no collection, too long


def import_heavy_modules() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in HEAVY:
        importlib.import_module(name)


def head() -> str:
    """The commit that is checked out, in short."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=PROJECT_ROOT, capture_output=True, check=True, text=True).stdout.strip()


def copy_of(commit: str) -> Path:
    """A temporary folder with what is in a commit; the caller removes it."""
    folder = Path(tempfile.mkdtemp(prefix="planted-"))
    archive = subprocess.run(["git", "archive", commit], cwd=PROJECT_ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


class Run:
    """Tests running in a child of this process."""

    def __init__(self, root: Path, tests: tuple[str, ...], stop_at_first: bool, limit_seconds: float):
        self._start = time.monotonic()
        self._limit_seconds = limit_seconds
        self._scratch = Path(tempfile.mkdtemp(prefix="planted-run-"))
        self.pid = os.fork()
        if self.pid == 0:
            _be_the_child(root, tests, stop_at_first, self._scratch)

    def outcome(self) -> Outcome | None:
        """None while it runs. A run beyond its limit is ended, with all processes that it started."""
        seconds = time.monotonic() - self._start
        pid, _ = os.waitpid(self.pid, os.WNOHANG)
        is_late = pid == 0 and seconds > self._limit_seconds
        if pid == 0 and not is_late:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if is_late:
            os.waitpid(self.pid, 0)
        found = self._read(f"no end within {self._limit_seconds:.0f} s" if is_late else "")
        found.seconds = round(seconds, 1)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return found

    def _read(self, broken: str) -> Outcome:
        result, output = self._scratch / "outcome.json", self._scratch / "output.txt"
        if not broken and result.exists():
            return Outcome(**json.loads(result.read_text(encoding="utf-8")))
        last_lines = "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        return Outcome(broken=broken or f"pytest ended without a result: {last_lines}")


def _be_the_child(root: Path, tests: tuple[str, ...], stop_at_first: bool, scratch: Path) -> None:
    os.setsid()
    output = os.open(scratch / "output.txt", os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    _forget_the_package()
    os.chdir(root)
    sys.path[:] = [str(root), *(path for path in sys.path if path not in ("", str(PROJECT_ROOT)))]
    os.environ["PYTHONPATH"] = str(root)  # for processes that tests start
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # of a file changed within a second the bytecode would be the old one's
    sys.dont_write_bytecode = True
    import pytest

    recorder = _Recorder()
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={root}", f"--basetemp={scratch / 'tmp'}"]
    code = pytest.main([*options, *(["-x"] if stop_at_first else []), *tests], plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        recorder.outcome.broken = recorder.outcome.broken or f"pytest ended with {code.name}"
    aside = scratch / "outcome.writing"
    aside.write_text(json.dumps(asdict(recorder.outcome)), encoding="utf-8")
    aside.replace(scratch / "outcome.json")
    os._exit(0)


def _forget_the_package() -> None:
    """This process was started from the project itself; the child is to see its copy alone."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "openrlhf")]:
        del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")  # processes that tests spawn would import it again


class _Recorder:
    """A plugin of pytest that notes what became of each test."""

    def __init__(self) -> None:
        self.outcome = Outcome()

    def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]
        if report.failed:
            self.outcome.failed.append(report.nodeid)
            self.outcome.reason = self.outcome.reason or _reason(report)
        elif report.passed and report.when == "call":
            self.outcome.passed.append(report.nodeid)

    def pytest_collectreport(self, report) -> None:  # type: ignore[no-untyped-def]
        if report.failed:
            self.outcome.broken = f"{report.nodeid} could not be collected: {_reason(report)}"


def _reason(report) -> str:  # type: ignore[no-untyped-def]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr).strip().splitlines()[-1]
    return text.splitlines()[0][:160] if text else ""
