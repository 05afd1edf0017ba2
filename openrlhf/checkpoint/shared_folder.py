"""Whether all ranks see one folder: each writes its part of a checkpoint there, and rank 0 puts them together."""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

from torch.distributed import ProcessGroup

from openrlhf.parallel.collectives import gather_objects, rank_in, size_of

_SECONDS_TO_SEE = 3.0  # a file server may need a moment; a save gives it none
_SECONDS_BETWEEN_LOOKS = 0.1
_HOSTS_NAMED = 8


def problem_of_sharing(folder: Path, group: ProcessGroup | None) -> str | None:
    """Which hosts do not see what rank 0 writes into `folder`, the same on all ranks; None where all do."""
    if size_of(group) == 1:
        return None
    mark = gather_objects(_new_mark(folder) if rank_in(group) == 0 else None, group)[0]
    if mark is None:  # a full disk is told by the save
        return None
    blind = gather_objects(None if _is_seen(mark) else socket.gethostname(), group)
    if rank_in(group) == 0:
        with suppress(OSError):
            mark.unlink()
    hosts = list(dict.fromkeys(filter(None, blind)))
    if not hosts:
        return None
    more = f" and {len(hosts) - _HOSTS_NAMED} more" if len(hosts) > _HOSTS_NAMED else ""
    return (
        f"{', '.join(hosts[:_HOSTS_NAMED])}{more} (rank {', '.join(_ranks(blind))}) cannot see what rank 0 writes into "
        f"{folder}, and each rank writes its part of a checkpoint there: give --ckpt.path a folder that all machines "
        "share, or save no checkpoints (--ckpt.disable_ds)."
    )


def _ranks(blind: list[str | None]) -> list[str]:
    ranks = [str(rank) for rank, host in enumerate(blind) if host]
    return [*ranks[:_HOSTS_NAMED], "…"] if len(ranks) > _HOSTS_NAMED else ranks


def _new_mark(folder: Path) -> Path | None:
    """A file of a name that no rank has looked for: file servers remember for a while what was not there."""
    mark = folder / f".seen-{secrets.token_hex(8)}"
    with suppress(OSError):
        mark.touch()
        return mark
    return None


def _is_seen(mark: Path) -> bool:
    deadline = time.monotonic() + _SECONDS_TO_SEE
    while not os.path.exists(mark):  # Path.exists raises for a folder that may not be entered, or a dead mount
        if time.monotonic() > deadline:
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return True
