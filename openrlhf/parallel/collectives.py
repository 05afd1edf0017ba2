"""Collectives that also work for a single process without torch.distributed. A group of None is this rank alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class GridGroup(ProcessGroup):
    """All ranks in rows and columns: what is gathered over the row and then over the column is gathered over all.

    In gloo's ring of n ranks, 2n short messages follow each other; in the two rings of a grid it is 4√n. At 4,096 ranks
    this is 32 times less, and a rank has 126 connections in place of 4,095.
    """

    def __init__(self, row: ProcessGroup, column: ProcessGroup):
        """Args: row: ranks that follow each other. column: the ranks at the same place of each row."""
        width = dist.get_world_size(row)
        rank, size = dist.get_rank(column) * width + dist.get_rank(row), dist.get_world_size(column) * width
        super().__init__(rank, size)  # type: ignore[call-arg]  # torch's stub knows another of its constructors
        self.row, self.column = row, column


def is_lost_rank(error: Exception) -> bool:
    """Whether a collective has failed as another rank is gone. Gloo says so in a plain RuntimeError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def rank_in(group: ProcessGroup | None) -> int:
    """The rank of this process in `group`."""
    if isinstance(group, GridGroup):
        return group.rank()
    return 0 if group is None else dist.get_rank(group)


def size_of(group: ProcessGroup | None) -> int:
    """The number of ranks in `group`."""
    if isinstance(group, GridGroup):
        return group.size()
    return 1 if group is None else dist.get_world_size(group)


def sum_over(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """`tensor` summed over the ranks of `group`, in place."""
    return _reduce(tensor, dist.ReduceOp.SUM, group)


class SumOverRanks(torch.autograd.Function):
    """Sums over the ranks of a group. Backward: the gradients of all ranks add up, since each rank used the sums."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return sum_over(part.clone(), group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return sum_over(grads[0].contiguous().clone(), ctx.group), None


def max_over(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """The largest of `tensor` over the ranks of `group`, in place."""
    return _reduce(tensor, dist.ReduceOp.MAX, group)


def any_rank(condition: bool, group: ProcessGroup | None) -> bool:
    """True where `condition` holds on any rank of `group` (a gloo group: the flag lives on the CPU)."""
    return bool(max_over(torch.tensor(int(condition)), group))


def any_rank_within(condition: bool, group: ProcessGroup | None, seconds: float | None) -> bool | None:
    """As `any_rank`; None where not all ranks have come that soon, after which the group is of no use any more."""
    if seconds is None:
        return any_rank(condition, group)
    flag = torch.tensor(int(condition))
    lines = [group.row, group.column] if isinstance(group, GridGroup) else [group] if group else []
    for line in lines:
        try:
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=line, async_op=True).wait(timedelta(seconds=seconds))
        except RuntimeError:
            return None
    return bool(flag)


def gather_objects(value: Any, group: ProcessGroup | None) -> list[Any]:
    """Every rank's `value`, in the order of ranks, on every rank (for short control messages)."""
    if size_of(group) == 1:
        return [value]
    if isinstance(group, GridGroup):
        return [one for row in gather_objects(gather_objects(value, group.row), group.column) for one in row]
    values: list[Any] = [None] * size_of(group)
    dist.all_gather_object(values, value, group=group)
    return values


def on_host(data: Any) -> Tensor:
    """A number or tensor as a tensor on the CPU."""
    return data.detach().cpu() if isinstance(data, Tensor) else torch.tensor(data, dtype=torch.float64)


def gather_problems(problem: str | None, group: ProcessGroup | None) -> tuple[str, ...]:
    """The problems that any rank has, each with its rank, on every rank; empty when all is well.

    After a step that can fail on one rank alone, this keeps the others from waiting for it.
    """
    problems = gather_objects(problem, group)
    return tuple(f"rank {rank}: {text}" for rank, text in enumerate(problems) if text)


def _reduce(tensor: Tensor, operation: Any, group: ProcessGroup | None) -> Tensor:
    if isinstance(group, GridGroup):
        return _reduce(_reduce(tensor, operation, group.row), operation, group.column)
    if group is not None:
        dist.all_reduce(tensor, operation, group=group)
    return tensor
