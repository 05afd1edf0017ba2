"""Ranks telling one another how it went, so that one that fails never leaves the others waiting.

The group is a gloo group of all ranks, made for this purpose: it works while an accelerator is in trouble,
and its timeout may be longer than that of training. Without torch.distributed there is one rank.
"""

from typing import Any

import torch.distributed as dist


def num_ranks(group: dist.ProcessGroup | None) -> int:
    """Ranks of the job."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def this_rank(group: dist.ProcessGroup | None) -> int:
    """Rank of this process."""
    return dist.get_rank(group) if dist.is_initialized() else 0


def from_all_ranks(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Every rank's value, by rank, on every rank. Collective."""
    if num_ranks(group) == 1:
        return [value]
    values: list[Any] = [None] * num_ranks(group)
    dist.all_gather_object(values, value, group=group)
    return values


def problems_of_all_ranks(problem: str | None, group: dist.ProcessGroup | None) -> tuple[str, ...]:
    """The problems that any rank has, each with its rank; empty when all is well. Collective."""
    problems = from_all_ranks(problem, group)
    return tuple(f"rank {rank}: {text}" for rank, text in enumerate(problems) if text)
