"""Processes as Linux numbers them: whose number it is, and since when.

A number alone names nobody: numbers come again, and containers of one machine have numbers, and often names, of their
own. So a process is known by the machine's boot, the space of its number, the number, and its beginning.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def this_machine() -> str:
    """The machine's boot and the space of this process's number; the host's name may be another machine's too."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def start_of(pid: int) -> str:
    """When a process began, in the system's ticks; empty where there is none, or it has ended and nobody has asked."""
    fields = stat_of(pid)
    return "" if not fields or fields[0] in "ZX" else fields[19]


def parent_of(pid: int) -> int:
    """0 where it cannot be known."""
    fields = stat_of(pid)
    return int(fields[1]) if fields else 0


def stat_of(pid: int) -> list[str]:
    """The fields behind the name in `/proc/<pid>/stat`; none where there is no such process, or no /proc."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


def leave_with(parent: int) -> None:
    """Asks this process to leave when its parent ends: Linux sends the signal, whatever ends that."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # no Linux
        return
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signal.SIGTERM)


# --- a name of a process, for files and their names ---


def this_process() -> str:
    """A name that no other process has, on any machine, at any time."""
    return f"{_machine_in_a_word()}-{os.getpid()}-{start_of(os.getpid())}"


def is_near(name: str) -> bool:
    """Whether this process could see the one of that name."""
    return name.partition("-")[0] == _machine_in_a_word()


def has_ended(name: str) -> bool:
    """Whether the process of that name is near and gone; False for what is no such name."""
    machine, _, numbers = name.partition("-")
    pid, _, start = numbers.partition("-")
    return machine == _machine_in_a_word() and pid.isdigit() and start_of(int(pid)) != start


@cache
def _machine_in_a_word() -> str:
    return hashlib.blake2b(this_machine().encode(), digest_size=6).hexdigest()
