"""Programs that a run starts, and that end with it, however it ends."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_SECONDS_TO_LEAVE = 30.0
_SECONDS_TO_FOLLOW = 5.0  # of what the program has started


def words_of(command: str) -> list[str]:
    """The words of a command line; `python` is the one that runs."""
    words = shlex.split(command)
    return [sys.executable, *words[1:]] if words and words[0] in ("python", "python3") else words


def start(
    words: Sequence[str],
    lock: int | None = None,
    variables: Mapping[str, str] | None = None,
    has_group: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts a program, which is asked to leave when this process is gone. Raises OSError where there is none.

    Args:
        lock: file descriptor of `alone_in`, held by the program too, as long as it lives.
        variables: added to its environment.
        has_group: it leads a group of processes, which `end` ends whole; Ctrl-C in a terminal does not reach them.
    """
    kept_open = () if lock is None else (lock,)
    environment, leave = os.environ | dict(variables or {}), functools.partial(leave_with, os.getpid())
    return subprocess.Popen(words, preexec_fn=leave, pass_fds=kept_open, env=environment, start_new_session=has_group)


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks a program of a group of its own to leave, with all that it has started, and kills what stays."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_LEAVE)
        until = time.monotonic() + _SECONDS_TO_FOLLOW  # a shell leaves before what it has started
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def leave_with(parent: int) -> None:
    """Asks this process to leave when its parent ends: Linux sends the signal, whatever ends that."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # no Linux
        return
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """In the block no other process works in the folder. What a killed one has started, and is not gone yet, counts.

    Gives the file descriptor of the lock, for `start`.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = "another run works there, or what a killed one has started has not ended"
            print(f"{folder}: {told}: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield file.fileno()
