"""Pools of ranks for the whole session: started when a test first asks for them."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest

from tests.helpers.ranks import RankPool


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
