"""Process groups named by their job. No caller reasons about ranks.

    rank = (data_rank * sequence_size + sequence_rank) * tensor_size + tensor_rank

- data: ranks of different data_rank read different samples.
- sequence: the ranks of a ring share the tokens of the same samples.
- tensor: ranks share the weights of a layer (DeepSpeed's AutoTP) and compute the same tokens.
- loss: the ranks whose partial sums add up to the window's sum (data x sequence).
- control: all ranks, over gloo on the CPU, for short messages between hosts' processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


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
    data: ProcessGroup | None
    sequence: ProcessGroup | None
    tensor: ProcessGroup | None
    loss: ProcessGroup | None
    control: ProcessGroup | None

    @property
    def loss_size(self) -> int:
        """Number of ranks whose partial sums add up."""
        return self.data_size * self.sequence_size


def alone() -> ProcessGroups:
    """The groups of a single process that has not initialised torch.distributed."""
    return ProcessGroups(0, 1, 0, 1, 0, 1, 0, 1, None, None, None, None, None)


def make_process_groups(sequence_size: int, tensor_size: int, control_timeout: timedelta) -> ProcessGroups:
    """The groups of this rank; every rank must call it. `sequence_size * tensor_size` must divide the world size."""
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
        data=_mine(ranks.movedim(0, -1).reshape(-1, data_size), rank),
        sequence=_mine(ranks.movedim(1, -1).reshape(-1, sequence_size), rank),
        tensor=_mine(ranks.reshape(-1, tensor_size), rank),
        loss=_mine(ranks.movedim(2, 0).reshape(tensor_size, -1), rank),
        control=dist.new_group(backend="gloo", timeout=control_timeout),
    )


def _mine(ranks_by_group: Tensor, rank: int) -> ProcessGroup | None:
    """Makes the groups, a row each (a collective call). Returns the one of `rank`; None where each holds one rank."""
    if ranks_by_group.shape[1] == 1:
        return None
    groups = [(ranks, dist.new_group(ranks)) for ranks in ranks_by_group.tolist()]
    return next(group for ranks, group in groups if rank in ranks)
