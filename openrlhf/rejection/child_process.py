"""Programs that a run starts, and that end with it, however it ends."""

from __future__ import annotations

import ctypes
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_SECONDS_TO_LEAVE = 30.0


def words_of(command: str) -> list[str]:
    """The words of a command line; `python` is the one that runs."""
    words = shlex.split(command)
    return [sys.executable, *words[1:]] if words and words[0] in ("python", "python3") else words


def start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a program, which is asked to leave when this process is gone. Raises OSError where there is none."""
    return subprocess.Popen(words, preexec_fn=_leave_with_parent)


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks a program to leave, and kills it where it stays."""
    process.terminate()
    try:
        process.wait(_SECONDS_TO_LEAVE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _leave_with_parent() -> None:
    """Linux sends the signal whatever ends the parent."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # no Linux
        return
