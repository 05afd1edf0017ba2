"""A group of None is this rank alone, whether or not there are others."""

from __future__ import annotations

import torch
import torch.distributed as dist

from openrlhf.parallel.collectives import any_rank, gather_objects, gather_problems, rank_in, size_of, sum_over


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


def test_none_is_this_rank_alone_among_several(two_ranks):
    for rank, found in enumerate(two_ranks.run(results_alone)):
        problems = ("rank 0: full",) if rank == 1 else ()
        alone = {"rank": 0, "size": 1, "objects": [rank], "problems": problems, "any": rank == 1, "sum": rank}
        assert found == alone


def test_a_group_hears_of_all_its_ranks(two_ranks):
    for rank, found in enumerate(two_ranks.run(results_together)):
        together = {"rank": rank, "size": 2, "objects": [0, 1], "problems": ("rank 1: full",), "any": True, "sum": 1}
        assert found == together
