"""Meeting again after torchrun has restarted the ranks.

torchrun keeps one key-value store over all its restarts, and torch.distributed leaves the ranks' addresses in it under
the same names each time. A rank that is quicker than its peer would read the address of the peer that died, and fail
to connect. So the ranks of each start agree on a name of their own first, and keep their keys under it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

_SECONDS_BETWEEN_LOOKS = 0.02


def store_of_this_start(timeout: timedelta) -> PrefixStore | None:
    """What torch.distributed shall use under torchrun; None elsewhere, where every start has a new store."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    return PrefixStore(name_of_this_start(store, rank, world_size, timeout), store)


def name_of_this_start(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """The same on all ranks, and never used before.

    Each rank says hello with a word made for this start; rank 0 answers every word it finds, also those of the dead.
    Only who has said a word looks for its answer, so an old answer deceives nobody.

    Raises TimeoutError where a rank does not come.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    if rank == 0:
        return _welcome_all(store, world_size, deadline)
    word = uuid.uuid4().hex
    store.set(f"hello/{rank}", word)
    _wait(lambda: store.check([f"welcome/{word}"]), deadline, "rank 0 has not answered")
    name = store.get(f"welcome/{word}").decode()
    store.set(f"{name}/joined/{rank}", "")
    return name


def _welcome_all(store: Store, world_size: int, deadline: float) -> str:
    name = f"start-{uuid.uuid4().hex}"
    for rank in range(1, world_size):

        def has_joined(rank: int = rank) -> bool:
            if store.check([f"hello/{rank}"]):
                store.set(f"welcome/{store.get(f'hello/{rank}').decode()}", name)
            return store.check([f"{name}/joined/{rank}"])

        _wait(has_joined, deadline, f"rank {rank} has not come")
    return name


def _wait(is_so: Callable[[], bool], deadline: float, otherwise: str) -> None:
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise}: is that rank's process still running?")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
