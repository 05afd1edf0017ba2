"""A group of None is this rank alone, whether or not there are others."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from openrlhf.parallel import groups
from openrlhf.parallel.collectives import (
    GridGroup,
    any_rank,
    gather_objects,
    gather_problems,
    rank_in,
    size_of,
    sum_over,
)


def results_of(group):
    rank = dist.get_rank()
    return {
        "rank": rank_in(group),
        "size": size_of(group),
        "objects": gather_objects(rank, group),
        "problems": gather_problems("full" if rank == 1 else None, group),
        "any": any_rank(rank == 1, group),
        "sum": sum_over(torch.tensor(rank), group).item(),
    }


def results_alone():
    return results_of(None)


def results_together():
    return results_of(dist.group.WORLD)


def results_in_a_grid():
    least, groups.LEAST_RANKS_OF_A_GRID = groups.LEAST_RANKS_OF_A_GRID, 4
    try:
        control = groups.make_process_groups(1, 1, timedelta(seconds=60)).control
    finally:
        groups.LEAST_RANKS_OF_A_GRID = least
    assert isinstance(control, GridGroup)
    assert [dist.get_world_size(line) for line in (control.row, control.column)] == [2, 2]
    return results_of(control)


def test_none_is_this_rank_alone_among_several(two_ranks):
    for rank, found in enumerate(two_ranks.run(results_alone)):
        problems = ("rank 0: full",) if rank == 1 else ()
        alone = {"rank": 0, "size": 1, "objects": [rank], "problems": problems, "any": rank == 1, "sum": rank}
        assert found == alone


def test_a_group_hears_of_all_its_ranks(two_ranks):
    for rank, found in enumerate(two_ranks.run(results_together)):
        together = {"rank": rank, "size": 2, "objects": [0, 1], "problems": ("rank 1: full",), "any": True, "sum": 1}
        assert found == together


def test_a_grid_of_ranks_hears_of_all_of_them(four_ranks):
    for rank, found in enumerate(four_ranks.run(results_in_a_grid)):
        together = {"rank": rank, "size": 4, "objects": [0, 1, 2, 3], "problems": ("rank 1: full",), "any": True}
        assert found == together | {"sum": 6}
