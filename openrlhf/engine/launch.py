"""Joining the ranks: DeepSpeed's launcher, torchrun, srun, mpirun and others, or one plain process."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch.distributed import PrefixStore, Store, rendezvous

from openrlhf.build_folder import keep_builds_apart
from openrlhf.control_groups import cores_allowed
from openrlhf.engine.devices import take_device
from openrlhf.engine.gloo_interface import choose_gloo_interface
from openrlhf.engine.launchers import (
    adopt_launcher,
    num_local_ranks,
    one_process_starts_local_ranks,
    says_local_ranks,
    sign_of_other_ranks,
)
from openrlhf.engine.patches.group_timeouts import limit_groups
from openrlhf.engine.patches.shared_memory_operator import leave_out_shared_memory
from openrlhf.errors import UserError
from openrlhf.watchdog.connections import joining_ranks

_SECONDS_BETWEEN_LOOKS = 0.02


def join_ranks(timeout: timedelta) -> torch.device:
    """Initialises torch.distributed (nccl where there is a GPU, else gloo) and returns this rank's device.

    Args:
        timeout: how long a rank waits inside a collective before the run ends.

    Raises UserError where this rank has no device of its own, RankLost where ranks do not find each other.
    """
    adopt_launcher()
    _stand_alone_if_not_launched()
    device = take_device()
    _prepare(device)
    import deepspeed

    with joining_ranks(int(os.environ["WORLD_SIZE"])):
        if not torch.distributed.is_initialized():  # a script may have done so
            _init_process_group(device, timeout)
        leave_out_shared_memory()
        deepspeed.init_distributed(timeout=timeout, verbose=False)
    limit_groups(timeout)
    return device


def _init_process_group(device: torch.device, timeout: timedelta) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # of no known number of ranks, torch's store waits for none: below it is said which one has not come
    store = next(rendezvous("env://?world_size=-1", timeout=timeout))[0]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = PrefixStore(name_of_this_start(store, rank, world_size, timeout), store)
    check_devices_differ(store, rank, world_size, _name_of(device), timeout)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        # bound to its device, torch makes later groups out of the connections of this one
        device_id=device if device.type == "cuda" and world_size > 1 else None,
    )


def leave_ranks() -> None:
    """Gives up the connections; all ranks call, at the end of their work. After an error the process just ends."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _stand_alone_if_not_launched() -> None:
    """`python -m …` without a launcher is a run of one rank, which meets nobody at an address that is set all the same.

    (Kubernetes has a MASTER_PORT of its own where a service is named master.)
    """
    if "RANK" in os.environ:
        needed = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if name not in os.environ]
        missing += [] if says_local_ranks(os.environ) else ["LOCAL_WORLD_SIZE"]
        if missing:
            raise UserError(f"RANK={os.environ['RANK']} is set, and {', '.join(missing)} not: ranks need all of them.")
        if not (port := os.environ["MASTER_PORT"]).isdecimal() or not 0 < int(port) < 1 << 16:
            raise UserError(
                f"MASTER_PORT={port} is no number from 1 to 65535: set it to a free port of rank 0's machine, as 29500."
            )
        return
    if ignored := [f"{name}={os.environ[name]}" for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ]:
        print(f"note: {', '.join(ignored)} changes nothing: RANK is not set, so this process is alone.", flush=True)
    if sign := sign_of_other_ranks(os.environ):
        print(
            f"note: {sign} speaks of more ranks, and RANK is not set, so this process is alone. Start ranks by "
            "torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each.",
            flush=True,
        )
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}


def _prepare(device: torch.device) -> None:
    """What must be so before DeepSpeed is loaded, and before ranks wait for each other."""
    keep_builds_apart()
    _share_cores_among_ranks()
    choose_gloo_interface()
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _share_cores_among_ranks() -> None:
    """Without this every rank would start a thread for every core of the machine, and all would wait for each other."""
    if not _threads_are_chosen():
        num_threads = num_host_threads()
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # for what brings another OpenMP than torch's
        torch.set_num_threads(num_threads)


def num_host_threads() -> int:
    """The cores of this process; those of a task of SLURM are its own where it is the rank, else all ranks' here."""
    num_cores = len(os.sched_getaffinity(0))
    if (allowed := cores_allowed()) is not None:  # more threads than a container's quota would be held back together
        num_cores = min(num_cores, max(1, int(allowed)))
    if num_of_task := int(os.environ.get("SLURM_CPUS_PER_TASK", "0")):
        num_cores = min(num_cores, num_of_task)
        if not one_process_starts_local_ranks(os.environ):
            return num_cores
    return max(1, num_cores // num_local_ranks(os.environ))


def _threads_are_chosen() -> bool:
    """By the user: torchrun says 1 to ranks whose user has said nothing, and an offloaded optimizer would crawl."""
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads != "1" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return threads is not None
    try:
        environ_of_torchrun = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return True
    return any(variable.startswith(b"OMP_NUM_THREADS=") for variable in environ_of_torchrun)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- a device for each rank ------------------------------------------------------------------------------------------


def check_devices_differ(store: Store, rank: int, world_size: int, device_name: str, timeout: timedelta) -> None:
    """Every rank tells its device, and rank 0 tells all of them whether two have the same.

    Args: device_name: the same for two ranks only if they share a GPU; empty for a CPU, which ranks may share.
    Raises UserError, on all ranks alike, where two share a GPU; TimeoutError where a rank does not come.
    """
    store.set(f"device/{rank}", json.dumps([socket.gethostname(), device_name]))
    if rank == 0:
        ranks_by_device: dict[str, list[int]] = defaultdict(list)
        deadline = time.monotonic() + timeout.total_seconds()
        for other in range(world_size):
            key = f"device/{other}"
            _wait(partial(store.check, [key]), deadline, partial("rank {} has not come".format, other))
            ranks_by_device[store.get(key).decode()].append(other)
        store.set("devices", _words_on_shared(ranks_by_device))
    if words := store.get("devices").decode():
        raise UserError(words)


def _words_on_shared(ranks_by_device: dict[str, list[int]]) -> str:
    """Empty where no two ranks share a GPU."""
    for place, ranks in ranks_by_device.items():
        host, device_name = json.loads(place)
        if device_name and len(ranks) > 1:
            return (
                f"ranks {', '.join(map(str, ranks))} have the same GPU of {host} ({device_name}): start one rank for "
                "each GPU, and let each see a GPU of its own or all of them see all (CUDA_VISIBLE_DEVICES)."
            )
    return ""


def _name_of(device: torch.device) -> str:
    return "" if device.type == "cpu" else str(torch.cuda.get_device_properties(device).uuid)


# --- after a restart by torchrun -------------------------------------------------------------------------------------
#
# torchrun keeps one key-value store over all its restarts, and torch.distributed leaves the ranks' addresses in it
# under the same names each time (https://github.com/pytorch/pytorch/issues/135712). A rank that is quicker than its
# peer would read the address of the peer that died, and fail to connect. So the ranks of each start agree on a name of
# their own first, and keep their keys under it. The restart count is no such name: an agent counts for itself, and one
# that was started anew begins at 0.


def name_of_this_start(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that is the same on all ranks, and was never used before.

    Rank 0 makes the name. The store may hold keys of earlier starts, so no fixed key can carry the name to the others:

    1. Each other rank r makes a random word and writes it to `hello/r`, over the word of an earlier start.
    2. Rank 0 looks at `hello/r` again and again. It writes the name to `welcome/<word>` for every word that it finds
       there, also for a word of a rank that died.
    3. Rank r waits for `welcome/<its own word>`: an answer to an earlier word stands under another key.
    4. Rank r writes `<name>/joined/r`, and rank 0 looks at it no more: a word of a dead rank is never taken for its
       successor's arrival.

    Raises TimeoutError where a rank does not come.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    if rank == 0:
        return _welcome_all(store, world_size, deadline)
    word = uuid.uuid4().hex
    store.set(f"hello/{rank}", word)
    _wait(lambda: store.check([f"welcome/{word}"]), deadline, lambda: "rank 0 has not answered")
    name = store.get(f"welcome/{word}").decode()
    store.set(f"{name}/joined/{rank}", "")
    return name


def _welcome_all(store: Store, world_size: int, deadline: float) -> str:
    name = f"start-{uuid.uuid4().hex}"
    missing = list(range(1, world_size))

    def have_joined() -> bool:
        for rank in missing.copy():
            if store.check([f"hello/{rank}"]):
                store.set(f"welcome/{store.get(f'hello/{rank}').decode()}", name)
            if store.check([f"{name}/joined/{rank}"]):
                missing.remove(rank)
        return not missing

    _wait(have_joined, deadline, lambda: f"rank {missing[0]} has not come")
    return name


def _wait(is_so: Callable[[], bool], deadline: float, otherwise: Callable[[], str]) -> None:
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise()}: is that rank's process still running?")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
