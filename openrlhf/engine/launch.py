"""Joining the ranks: DeepSpeed's launcher, torchrun, SLURM's srun through either, or one plain process."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, Store, TCPStore

from openrlhf.build_folder import keep_builds_apart
from openrlhf.engine.operators import compile_for_communication
from openrlhf.watchdog.connections import joining_ranks

_SECONDS_BETWEEN_LOOKS = 0.02


def join_ranks(timeout: timedelta) -> torch.device:
    """Initialises torch.distributed (nccl where there is a GPU, else gloo) and returns this rank's device.

    Args:
        timeout: how long a rank waits inside a collective before the run ends.
    """
    _stand_alone_if_not_launched()
    keep_builds_apart()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _share_cores_among_ranks()
        compile_for_communication()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    device = _device()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = get_accelerator().communication_backend_name()
    with joining_ranks(world_size):
        store = _store_of_this_start(timeout)
        if store is not None:
            torch.distributed.init_process_group(
                backend, store=store, rank=rank, world_size=world_size, timeout=timeout
            )
        deepspeed.init_distributed(timeout=timeout, verbose=False)
    return device


def _stand_alone_if_not_launched() -> None:
    """`python -m …` without a launcher is a run of one rank."""
    if "RANK" in os.environ:
        return
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))


def _share_cores_among_ranks() -> None:
    """Without this every rank would start a thread for every core of the machine, and all would wait for each other."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _num_local_ranks()))


def _num_local_ranks() -> int:
    """As torchrun names it, as DeepSpeed's launcher does; else all ranks are taken to be on this machine."""
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
    return next(int(os.environ[name]) for name in names if os.environ.get(name))


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- after a restart by torchrun -------------------------------------------------------------------------------------
#
# torchrun keeps one key-value store over all its restarts, and torch.distributed leaves the ranks' addresses in it
# under the same names each time (https://github.com/pytorch/pytorch/issues/135712). A rank that is quicker than its
# peer would read the address of the peer that died, and fail to connect. So the ranks of each start agree on a name of
# their own first, and keep their keys under it. The restart count is no such name: an agent counts for itself, and one
# that was started anew begins at 0.


def _store_of_this_start(timeout: timedelta) -> PrefixStore | None:
    """The store for torch.distributed under torchrun; None elsewhere, where every start has a new store."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    return PrefixStore(name_of_this_start(store, rank, world_size, timeout), store)


def name_of_this_start(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that is the same on all ranks, and was never used before.

    Rank 0 makes the name. The store may hold keys of earlier starts, so no fixed key can carry the name to the others:

    1. Each other rank r makes a random word and writes it to `hello/r`, over the word of an earlier start.
    2. Rank 0 looks at `hello/r` again and again. It writes the name to `welcome/<word>` for every word that it finds
       there, also for a word of a rank that died.
    3. Rank r waits for `welcome/<its own word>`: an answer to an earlier word stands under another key.
    4. Rank r writes `<name>/joined/r`, and rank 0 goes on to the next rank: a word of a dead rank is never taken for
       its successor's arrival.

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
