"""Pools of ranks for the whole session: started when a test first asks for them."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest

from tests.helpers.ranks import RankPool

# A shell that starts the tests in the background has them ignore these; the runs that they start must not.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def one_rank():
    with RankPool(1) as pool:
        yield pool


@pytest.fixture(scope="session")
def two_ranks():
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="session")
def four_ranks():
    with RankPool(4) as pool:
        yield pool
