"""Joining: cores shared on a machine, and ranks that find each other after torchrun has started them again."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from openrlhf.engine.launch import _free_port, _init_process_group, join_ranks, name_of_this_start
from openrlhf.engine.launchers import num_local_ranks
from openrlhf.errors import UserError
from tests.helpers.ranks import RankPool

NUM_RANKS = 3
_BUFFER = "deepspeed_allreduce_buffer"
TIMEOUT = timedelta(seconds=20)
TWO_MACHINES = {"WORLD_SIZE": "8"}  # four ranks each


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TWO_MACHINES | {"LOCAL_WORLD_SIZE": "4"}, 4),  # torchrun
        (TWO_MACHINES | {"LOCAL_SIZE": "4"}, 4),  # deepspeed
        ({"WORLD_SIZE": "64"}, 1),  # without a rank: a process that is alone
        *(({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": place}, 2) for place in ("127.0.0.1", "localhost", "::1")),
    ],
)
def test_the_ranks_of_a_machine_share_its_cores(variables, expected):
    assert num_local_ranks(variables) == expected


def test_a_rank_that_does_not_say_how_many_are_here_takes_no_machine_for_granted():
    """A pod of Kubernetes' PyTorchJob: with all 64 ranks taken to be here, it would have a 64th of its memory."""
    with pytest.raises(UserError, match="RANK=3 of WORLD_SIZE=64 is set, and LOCAL_WORLD_SIZE not"):
        num_local_ranks({"RANK": "3", "WORLD_SIZE": "64", "LOCAL_RANK": "0"})
    assert num_local_ranks({"RANK": "0", "WORLD_SIZE": "1"}) == 1


def start(store: HashStore, slowest: int, seconds: float = 0.3) -> list[str]:
    """The name that each rank comes to, one of them being late."""

    def name(rank: int) -> str:
        time.sleep(seconds if rank == slowest else 0.0)
        return name_of_this_start(store, rank, NUM_RANKS, TIMEOUT)

    with ThreadPoolExecutor(NUM_RANKS) as pool:
        return list(pool.map(name, range(NUM_RANKS)))


@pytest.mark.parametrize("slowest", range(NUM_RANKS))
def test_all_ranks_agree_on_a_name_that_no_earlier_start_had(slowest):
    store = HashStore()
    seen = set()
    for _ in range(3):
        names = start(store, slowest)
        assert len(set(names)) == 1, f"ranks disagree: {names}"
        assert names[0] not in seen, "an earlier start's name came again"
        seen.update(names)


def test_a_rank_that_died_while_meeting_does_not_mislead_the_next_start():
    store = HashStore()
    store.set("hello/1", "word of the dead")
    assert len(set(start(store, slowest=1))) == 1


class QuickRanks(HashStore):
    """Ranks that have said hello, and join as soon as they are welcomed."""

    def __init__(self, num_ranks):
        super().__init__()
        for rank in range(1, num_ranks):
            self.set(f"hello/{rank}", f"word-{rank}")

    def set(self, key, value):
        super().set(key, value)
        if key.startswith("welcome/"):
            super().set(f"{value}/joined/{key.rpartition('-')[2]}", "")


def test_rank_0_waits_for_all_ranks_at_once(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    name_of_this_start(QuickRanks(200), 0, 200, TIMEOUT)
    assert len(waits) <= 1


def test_a_rank_that_does_not_come_is_named():
    with pytest.raises(TimeoutError, match="rank 1 has not come"):
        name_of_this_start(HashStore(), 0, 2, timedelta(seconds=0.1))


def test_a_rank_that_does_not_come_at_the_first_start_is_named(monkeypatch):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TimeoutError, match="rank 1 has not come"):
        _init_process_group(torch.device("cpu"), timedelta(seconds=0.1))


def shared_memory() -> tuple[bool, list[str]]:
    """Whether DeepSpeed's operator for sums in shared memory is loaded, and what it left in /dev/shm."""
    os.environ["LOCAL_SIZE"] = os.environ["WORLD_SIZE"]  # as DeepSpeed's launcher says that all ranks are here
    join_ranks(TIMEOUT)
    torch.distributed.barrier()
    names = [path.name for path in Path("/dev/shm").glob(f"{_BUFFER}_*_{os.environ['MASTER_PORT']}_*")]
    return hasattr(torch.ops.deepspeed, "inference_all_reduce_"), names


def test_ranks_take_no_memory_for_inference():
    with RankPool(2) as ranks:
        assert ranks.run(shared_memory) == [(False, []), (False, [])]
