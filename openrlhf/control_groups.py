"""The control groups of this process, which limit its memory and its cores, as a container or a scheduler made them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def folders_of(controller: str, root: Path) -> Iterator[tuple[Path, bool]]:
    """(folder, whether it is of the second version) of this process's group and of those above it, whose limits hold
    too.

    Args: controller: memory or cpu. root: below it lie `proc` and `sys`.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            mounted = root / "sys/fs/cgroup" / controller
        elif not controllers:
            mounted = root / "sys/fs/cgroup"
        else:
            continue
        group = mounted / path.lstrip("/")  # in a container the path may be the host's: what is there, counts
        for folder in (group, *group.parents):
            yield folder, not controllers
            if folder == mounted:
                break


def cores_allowed(root: Path = Path("/")) -> float | None:
    """How many cores' time this process may take, by the quotas of its groups; None without one."""
    return min((found for one in folders_of("cpu", root) if (found := _quota(*one)) is not None), default=None)


def _quota(folder: Path, is_second: bool) -> float | None:
    with suppress(OSError, ValueError):  # no such group here, or "max": no limit
        if is_second:
            quota, period = map(int, (folder / "cpu.max").read_text().split())
        else:
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None  # -1: no limit
    return None
