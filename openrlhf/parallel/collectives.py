"""Collectives that also work for a single process without torch.distributed. A group of None is this rank alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def sum_over(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """`tensor` summed over the ranks of `group`, in place."""
    return _reduce(tensor, dist.ReduceOp.SUM, group)


def max_over(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """The largest of `tensor` over the ranks of `group`, in place."""
    return _reduce(tensor, dist.ReduceOp.MAX, group)


def any_rank(condition: bool, group: ProcessGroup | None) -> bool:
    """Whether `condition` holds on any rank of `group` (a gloo group: the flag lives on the CPU)."""
    if group is None:
        return condition
    return bool(max_over(torch.tensor(int(condition)), group))


def gather_objects(value: Any, group: ProcessGroup | None) -> list[Any]:
    """Every rank's `value`, in the order of ranks, on every rank (for short control messages)."""
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _reduce(tensor: Tensor, operation: Any, group: ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(tensor, operation, group=group)
    return tensor
