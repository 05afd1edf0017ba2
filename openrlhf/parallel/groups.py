"""Process groups named by their job. No caller reasons about ranks.

    rank = (data_rank * sequence_size + sequence_rank) * tensor_size + tensor_rank

Ranks of different data_rank read different samples; they need no group. The groups:

- sequence: the ranks of a ring share the tokens of the same samples.
- tensor: ranks share the weights of a layer (DeepSpeed's AutoTP) and compute the same tokens.
- loss: the ranks whose partial sums add up to the window's sum (data x sequence).
- control: all ranks, over gloo on the CPU, for short messages between hosts' processes.

nccl wants all ranks of a group in the first operation on it, also where two of them send to each other: a ring's first
step may be one in which a rank has nothing to send. So each group begins with a collective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from openrlhf.parallel.collectives import GridGroup

CPU = torch.device("cpu")
LEAST_RANKS_OF_A_GRID = 256


@dataclass(frozen=True)
class ProcessGroups:
    """The place of this rank in each kind of group, the sizes of the groups, and the groups; None: this rank alone."""

    rank: int
    world_size: int
    data_rank: int
    data_size: int
    sequence_rank: int
    sequence_size: int
    tensor_rank: int
    tensor_size: int
    sequence: ProcessGroup | None
    tensor: ProcessGroup | None
    loss: ProcessGroup | None
    control: ProcessGroup | None


def alone() -> ProcessGroups:
    """The groups of a single process that has not initialised torch.distributed."""
    return ProcessGroups(0, 1, 0, 1, 0, 1, 0, 1, None, None, None, None)


def make_process_groups(
    sequence_size: int, tensor_size: int, timeout: timedelta, device: torch.device = CPU
) -> ProcessGroups:
    """The groups of this rank; every rank must call it. `sequence_size * tensor_size` must divide the world size.

    Args:
        timeout: how long a rank waits for the others of a group.
        device: of the tensors that the groups exchange, but for `control`.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    data_size, rest = divmod(world_size, sequence_size * tensor_size)
    assert rest == 0, f"{sequence_size=} x {tensor_size=} does not divide {world_size=}"
    ranks = torch.arange(world_size).view(data_size, sequence_size, tensor_size)
    data_rank, sequence_rank, tensor_rank = (ranks == rank).nonzero()[0].tolist()
    return ProcessGroups(
        rank=rank,
        world_size=world_size,
        data_rank=data_rank,
        data_size=data_size,
        sequence_rank=sequence_rank,
        sequence_size=sequence_size,
        tensor_rank=tensor_rank,
        tensor_size=tensor_size,
        sequence=_mine(ranks.movedim(1, -1).reshape(-1, sequence_size), rank, timeout, device),
        tensor=_mine(ranks.reshape(-1, tensor_size), rank, timeout, device),
        loss=_mine(ranks.movedim(2, 0).reshape(tensor_size, -1), rank, timeout, device),
        control=_control(world_size, rank, timeout),
    )


def _control(world_size: int, rank: int, timeout: timedelta) -> ProcessGroup | None:
    """All ranks over gloo; many of them in rows and columns, each group of which its own ranks alone make."""
    width = max(one for one in range(1, math.isqrt(world_size) + 1) if world_size % one == 0)
    if world_size < LEAST_RANKS_OF_A_GRID or width == 1:
        return _begun(dist.new_group(backend="gloo", timeout=timeout), CPU)
    row, place = divmod(rank, width)
    lines = (range(row * width, (row + 1) * width), range(place, world_size, width))
    groups = [
        dist.new_group(list(line), backend="gloo", timeout=timeout, use_local_synchronization=True) for line in lines
    ]
    for group in groups:
        _begun(group, CPU)
    return GridGroup(*groups)


def _mine(ranks_by_group: Tensor, rank: int, timeout: timedelta, device: torch.device) -> ProcessGroup | None:
    """Makes the groups, a row each (a collective call). Returns the one of `rank`; None where each holds one rank."""
    num_groups, size = ranks_by_group.shape
    if size == 1:
        return None
    if num_groups == 1:
        return _begun(dist.group.WORLD, device)
    groups = [(ranks, dist.new_group(ranks, timeout=timeout)) for ranks in ranks_by_group.tolist()]
    return _begun(next(group for ranks, group in groups if rank in ranks), device)


def _begun(group: ProcessGroup | None, device: torch.device) -> ProcessGroup | None:
    """After a first collective: all its ranks are connected, or a network that is broken has shown itself."""
    flag = torch.zeros(1, device=device)
    dist.all_reduce(flag, group=group)
    flag.item()  # on a GPU it is only now that the host waits for it
    return group
