"""Pools of 1, 2 and 4 ranks, each started at its first use and kept for the whole session."""

from collections.abc import Callable, Iterator

import pytest

from tests.helpers.ranks import RankPool


@pytest.fixture(scope="session")
def pool_of() -> Iterator[Callable[[int], RankPool]]:
    pools: dict[int, RankPool] = {}

    def get(num_ranks: int) -> RankPool:
        if num_ranks not in pools:
            pools[num_ranks] = RankPool(num_ranks)
        return pools[num_ranks]

    yield get
    for pool in pools.values():
        pool.close()
