"""Joining the ranks: DeepSpeed's launcher, torchrun, SLURM's srun through either, or one plain process."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch

from openrlhf.build_folder import keep_builds_apart
from openrlhf.engine.operators import compiled_for_communication
from openrlhf.engine.restart_store import store_of_this_start
from openrlhf.watchdog.connections import joining_ranks


def join_ranks(timeout: timedelta) -> torch.device:
    """Initialises torch.distributed (nccl where there is a GPU, else gloo) and returns this rank's device.

    Args:
        timeout: how long a rank waits inside a collective before the run ends.
    """
    _stand_alone_if_not_launched()
    keep_builds_apart()
    if torch.cuda.is_available():
        return _join(timeout)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    _share_cores_among_ranks()
    with compiled_for_communication():
        return _join(timeout)


def _join(timeout: timedelta) -> torch.device:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    device = _device()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = get_accelerator().communication_backend_name()
    with joining_ranks(world_size):
        store = store_of_this_start(timeout)
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
