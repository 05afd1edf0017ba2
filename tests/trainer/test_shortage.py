"""Ranks of which one runs out of memory: they agree, or find that they cannot go on together."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.trainer.plain_engine import Recipe, make_loader, make_rows


def computed(collective_before: bool, failing: tuple[int, ...], seconds: float) -> str:
    """On this rank: two micro-batches, each with a collective; memory runs out in the second, before or behind it."""
    from openrlhf.parallel.groups import alone
    from openrlhf.trainer import shortage

    group, data = dist.new_group(backend="gloo"), dist.new_group(backend="gloo", timeout=timedelta(seconds=30))
    flag = torch.zeros(1)
    rank = dist.get_rank()
    groups: Any = SimpleNamespace(**vars(alone()) | {"rank": rank, "control": group})
    (window,) = make_loader(make_rows(), Recipe()).windows(max_epochs=1)

    def compute(number: int, micro_batch: Any) -> None:
        is_failing = number == 1 and rank in failing and bool(micro_batch.unit_names)
        if is_failing and not collective_before:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        dist.all_reduce(flag, group=data)
        if is_failing:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    usual, shortage.SECONDS_TO_FAIL_TOGETHER = shortage.SECONDS_TO_FAIL_TOGETHER, seconds
    try:
        shortage.compute_together(window, compute, groups, lambda: "forward pass")
    except shortage.OutOfMemory as error:
        return f"{type(error).__name__}: {error}"
    finally:
        shortage.SECONDS_TO_FAIL_TOGETHER = usual
    return "computed"


def test_ranks_of_which_none_fails_go_on(two_ranks):
    assert two_ranks.run(computed, False, (), 5.0) == ["computed"] * 2


@pytest.mark.parametrize("collective_before", [False, True])
def test_ranks_that_fail_at_one_place_give_up_together(two_ranks, collective_before):
    found = two_ranks.run(computed, collective_before, (0, 1), 60.0)
    words = [f"forward pass, rank {rank}: 8 tokens of row 3, row 1" for rank in (0, 1)]
    assert found == [f"OutOfMemory: {'; '.join(words)}"] * 2


def test_a_rank_alone_keeps_the_others_company(two_ranks):
    found = two_ranks.run(computed, False, (1,), 5.0)
    assert found == ["OutOfMemory: forward pass, rank 1: 8 tokens of row 3, row 1"] * 2


def computed_by_rank_1(shared: dict[str, int]) -> tuple[list[int], str]:
    """The units of each micro-batch that this rank has computed, where rank 1 has no memory for its first one."""
    from openrlhf.parallel.groups import alone
    from openrlhf.trainer import shortage

    rank, sizes = dist.get_rank(), []
    groups: Any = SimpleNamespace(**vars(alone()) | shared | {"rank": rank, "control": dist.new_group(backend="gloo")})
    (window,) = make_loader(make_rows(), Recipe()).windows(max_epochs=1)

    def compute(number: int, micro_batch: Any) -> None:
        sizes.append(len(micro_batch.unit_names))
        if rank and sizes[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(shortage.OutOfMemory) as error:
        shortage.compute_together(window, compute, groups, lambda: "forward pass")
    return sizes, type(error.value).__name__


def test_a_rank_that_shares_samples_sends_the_others_nothing_of_another_size(two_ranks):
    for shared in ({"sequence_size": 2}, {"tensor_size": 2}):
        assert two_ranks.run(computed_by_rank_1, shared) == [([2, 2], "OutOfMemory"), ([2], "OutOfMemory")]
    assert two_ranks.run(computed_by_rank_1, {})[1] == ([2, 0, 0], "OutOfMemory")


def unlike_collectives() -> str:
    """Rank 1 has begun a collective that rank 0 has not; in a group of its own, lest they wait for each other."""
    from openrlhf.parallel.groups import alone
    from openrlhf.trainer import shortage

    control, other = dist.new_group(backend="gloo"), dist.new_group(backend="gloo")
    work = dist.all_reduce(torch.zeros(1), group=other, async_op=True) if dist.get_rank() else None
    groups: Any = SimpleNamespace(**vars(alone()) | {"rank": dist.get_rank(), "control": control})
    one = shortage.Shortage(dist.get_rank(), "forward pass", ("row 1",), 3)
    try:
        shortage._agree(one, True, groups, lambda: None)
    except shortage.OutOfMemory as error:
        return type(error).__name__
    finally:
        if work is None:
            dist.all_reduce(torch.zeros(1), group=other)
        else:
            work.wait()
    return "went on"


def test_ranks_at_unlike_collectives_do_not_go_on(two_ranks):
    assert two_ranks.run(unlike_collectives) == ["Apart"] * 2
