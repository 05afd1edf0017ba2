"""Programs that a run starts, and that end with it, however it ends."""

from __future__ import annotations

import fcntl
import functools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from openrlhf.errors import UserError
from openrlhf.processes import leave_with

_SECONDS_TO_WAIT = 600.0  # for another run, or what a killed one has started: a training saves before it leaves
_SECONDS_BETWEEN_LOOKS = 0.2
_END_OF_GROUP = """
read -r nothing
kill -s TERM -- "-$1" || exit 0
for _ in $(seq 300); do kill -s 0 -- "-$1" || exit 0; sleep 0.1; done
kill -s KILL -- "-$1"
"""  # once nobody can write to its standard input any more; half a minute is left to leave


def words_of(command: str) -> list[str]:
    """The words of a command line; `python` is the one that runs."""
    words = shlex.split(command)
    return [sys.executable, *words[1:]] if words and words[0] in ("python", "python3") else words


def start(
    words: Sequence[str], lock: int | None = None, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a program, which is asked to leave when this process is gone. Raises OSError where there is none.

    Args:
        lock: file descriptor of `alone_in`, held by the program too, as long as it lives.
        variables: added to its environment.
    """
    environment, leave = os.environ | dict(variables or {}), functools.partial(leave_with, os.getpid())
    return subprocess.Popen(words, preexec_fn=leave, pass_fds=_given(lock), env=environment)


@contextmanager
def group_of(words: Sequence[str], lock: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """In the block a program runs, which leads a group of processes; Ctrl-C in a terminal does not reach them.

    Behind the block all of the group is asked to leave, and what stays is killed. A shell does so, once a pipe ends
    that this process alone holds: so the group ends however this process does, by SIGKILL too. The lock is held until
    then; see `start`. Raises OSError where there is no such program.
    """
    begin: Any = functools.partial(subprocess.Popen, pass_fds=_given(lock), start_new_session=True)
    process = begin(words)
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with begin(["sh", "-c", _END_OF_GROUP, "sh", str(process.pid)], stdin=subprocess.PIPE, **silent) as shell:
        try:
            yield process
        finally:
            assert shell.stdin is not None
            shell.stdin.close()
            process.wait()  # else it would be one of the group still


def _given(lock: int | None) -> tuple[int, ...]:
    return () if lock is None else (lock,)


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """In the block no other process works in the folder. What a killed one has started, and is not gone yet, counts.

    Gives the file descriptor of the lock, for `start`. Raises UserError where another stays, or there can be no lock.
    """
    path = folder / ".lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise UserError(f"{path}, the lock of a run, cannot be written: {error.strerror}.") from error
    with file:
        if not _is_locked(file):
            told = "another run works there, or what a killed one has started has not ended"
            print(f"{folder}: {told}{_holders(path)}: waiting for it", file=sys.stderr, flush=True)
            until = time.monotonic() + _SECONDS_TO_WAIT
            while not _is_locked(file):
                if time.monotonic() > until:
                    raise UserError(
                        f"{folder}: {told}{_holders(path)}, after {_SECONDS_TO_WAIT:g} seconds. Wait for its end, or "
                        "end it; then start the same command again."
                    )
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield file.fileno()


def _is_locked(file: IO[str]) -> bool:
    """By this process now. Raises nothing on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _holders(path: Path) -> str:
    """The other processes of this machine that have the file open, where they can be seen, as a bracket."""
    numbers = []
    with suppress(OSError):
        numbers = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has_open(pid, path)]
    others = sorted(set(numbers) - {os.getpid()})
    return f" (process {', '.join(map(str, others))})" if others else ""


def _has_open(pid: int, path: Path) -> bool:
    with suppress(OSError):  # it is another user's, or has ended
        return any(os.path.samefile(f"/proc/{pid}/fd/{number}", path) for number in os.listdir(f"/proc/{pid}/fd"))
    return False
