"""Collectives that also work for a single process without torch.distributed. A group of None is this rank alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def rank_in(group: ProcessGroup | None) -> int:
    """The rank of this process in `group`."""
    return 0 if group is None else dist.get_rank(group)


def size_of(group: ProcessGroup | None) -> int:
    """The number of ranks in `group`."""
    return 1 if group is None else dist.get_world_size(group)


def sum_over(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """`tensor` summed over the ranks of `group`, in place."""
    return _reduce(tensor, dist.ReduceOp.SUM, group)


def max_over(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """The largest of `tensor` over the ranks of `group`, in place."""
    return _reduce(tensor, dist.ReduceOp.MAX, group)


def any_rank(condition: bool, group: ProcessGroup | None) -> bool:
    """True where `condition` holds on any rank of `group` (a gloo group: the flag lives on the CPU)."""
    return bool(max_over(torch.tensor(int(condition)), group))


def gather_objects(value: Any, group: ProcessGroup | None) -> list[Any]:
    """Every rank's `value`, in the order of ranks, on every rank (for short control messages)."""
    if size_of(group) == 1:
        return [value]
    values: list[Any] = [None] * size_of(group)
    dist.all_gather_object(values, value, group=group)
    return values


def gather_problems(problem: str | None, group: ProcessGroup | None) -> tuple[str, ...]:
    """The problems that any rank has, each with its rank, on every rank; empty when all is well.

    After a step that can fail on one rank alone, this keeps the others from waiting for it.
    """
    problems = gather_objects(problem, group)
    return tuple(f"rank {rank}: {text}" for rank, text in enumerate(problems) if text)


def _reduce(tensor: Tensor, operation: Any, group: ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(tensor, operation, group=group)
    return tensor
