"""Pools of ranks for the whole session, started when first asked for; and no rank is left behind in this process."""

from __future__ import annotations

import os
import signal
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest

from tests.helpers.ranks import RankPool

# A shell that starts the tests in the background has them ignore these; the runs that they start must not.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)

_pools: list[RankPool] = []


@pytest.fixture(scope="module", autouse=True)
def _no_rank_is_left_behind():
    """A module that joins ranks in this process gives the next one its environment back: processes inherit it."""
    before = dict(os.environ)
    yield
    if "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():
        sys.modules["torch"].distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)
    for pool in _pools:
        pool.end_if_crowded()


def _pool_of(world_size: int):
    with RankPool(world_size) as pool:
        _pools.append(pool)
        yield pool


@pytest.fixture(scope="session")
def one_rank():
    yield from _pool_of(1)


@pytest.fixture(scope="session")
def two_ranks():
    yield from _pool_of(2)


@pytest.fixture(scope="session")
def four_ranks():
    yield from _pool_of(4)
