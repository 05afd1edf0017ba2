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

import torch.distributed as dist
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
    tensor_rank = rank % tensor_size
    sequence_rank = rank // tensor_size % sequence_size
    data_rank = rank // (tensor_size * sequence_size)

    def rank_of(data: int, sequence: int, tensor: int) -> int:
        return (data * sequence_size + sequence) * tensor_size + tensor

    datas, sequences, tensors = range(data_size), range(sequence_size), range(tensor_size)
    return ProcessGroups(
        rank=rank,
        world_size=world_size,
        data_rank=data_rank,
        data_size=data_size,
        sequence_rank=sequence_rank,
        sequence_size=sequence_size,
        tensor_rank=tensor_rank,
        tensor_size=tensor_size,
        data=_mine([[rank_of(d, s, t) for d in datas] for s in sequences for t in tensors], rank),
        sequence=_mine([[rank_of(d, s, t) for s in sequences] for d in datas for t in tensors], rank),
        tensor=_mine([[rank_of(d, s, t) for t in tensors] for d in datas for s in sequences], rank),
        loss=_mine([[rank_of(d, s, t) for d in datas for s in sequences] for t in tensors], rank),
        control=dist.new_group(backend="gloo", timeout=control_timeout),
    )


def _mine(rank_lists: list[list[int]], rank: int) -> ProcessGroup | None:
    """Makes all the groups (a collective call). Returns the one that holds `rank`; None where each holds one rank."""
    if len(rank_lists[0]) == 1:
        return None
    groups = [(ranks, dist.new_group(ranks)) for ranks in rank_lists]
    return next(group for ranks, group in groups if rank in ranks)
