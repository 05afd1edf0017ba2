"""Memory that a machine has left, as the kernel, the control groups and `ulimit -v` of this process say."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from openrlhf.control_groups import folders_of
from openrlhf.engine.launchers import num_local_ranks

_SHARE_TO_TAKE = 0.9  # data sets, communication and other processes take memory too
_CGROUP_2 = ("memory.max", "memory.current", "")
_CGROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


@dataclass(frozen=True)
class MemoryAsked:
    """The memory that a rank is about to take, and what its machine has left; None where the system does not say."""

    host: str
    bytes_asked: int
    bytes_left: int | None

    @classmethod
    def here(cls, bytes_asked: int) -> MemoryAsked:
        """On the machine of this process."""
        return cls(socket.gethostname(), bytes_asked, bytes_left())


def shortages(of_ranks: Sequence[MemoryAsked]) -> list[str]:
    """A sentence for each machine that has not what its ranks ask for together."""
    found = []
    for host in dict.fromkeys(one.host for one in of_ranks):
        here = [one for one in of_ranks if one.host == host]
        asked = sum(one.bytes_asked for one in here)
        left = min((one.bytes_left for one in here if one.bytes_left is not None), default=asked * 2)
        if asked > _SHARE_TO_TAKE * left:
            found.append(
                f"{host} has {left / 2**30:.2f} GiB of memory left, and copies of the states of its {len(here)} ranks "
                f"would take {asked / 2**30:.2f} GiB"
            )
    return found


def bytes_left(root: Path = Path("/")) -> int | None:
    """The least of what the machine, the control groups of this process and the address spaces of its ranks have left;
    None where nothing says it.

    Args: root: below it lie `proc` and `sys`.
    """
    try:
        of_machine = re.findall(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    of_groups = []
    for folder, is_second in folders_of("memory", root):
        with suppress(OSError, ValueError):  # no such group here, or "max": no limit
            of_groups.append(_left_in(folder, *(_CGROUP_2 if is_second else _CGROUP_1)))
    of_processes = _left_in_address_spaces(root)
    return min([*(int(kilobytes) * 1024 for kilobytes in of_machine), *of_groups, *of_processes], default=None)


def _left_in_address_spaces(root: Path) -> list[int]:
    """Nothing without a limit (`ulimit -v`), which is each process's own: of a machine's ranks, all limited alike."""
    with suppress(OSError):
        limit = re.search(r"^Max address space +(\d+)", (root / "proc/self/limits").read_text(), re.MULTILINE)
        size = re.search(r"^VmSize:\s+(\d+) kB", (root / "proc/self/status").read_text(), re.MULTILINE)
        if limit and size:
            return [max(0, int(limit[1]) - int(size[1]) * 1024) * num_local_ranks(os.environ)]
    return []


def _left_in(folder: Path, limit: str, usage: str, of_all_below: str) -> int:
    facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    # Pages of files count as used, but the kernel drops them before it ends a process.
    reclaimable = sum(int(facts.get(f"{of_all_below}{kind}_file", 0)) for kind in ("active", "inactive"))
    used_bytes = int((folder / usage).read_text()) - reclaimable
    return max(0, int((folder / limit).read_text()) - used_bytes)
