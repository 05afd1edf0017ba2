"""DistributedSampler: the rows of one rank, from any place of an epoch on, for loops of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler

from openrlhf.batching.schedule import epoch_order


class DistributedSampler(Sampler[int]):
    """Every `num_replicas`-th row of an epoch's order; ranks get equally many, by repeating the first rows.

    Args:
        num_replicas, rank: None: those of torch.distributed.
        drop_last: leave out the last rows instead.
        consumed_samples: of the epoch, over all ranks, that are trained already.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        consumed_samples: int = 0,
    ):
        is_joined = dist.is_available() and dist.is_initialized()
        self.dataset = dataset
        self.num_replicas = num_replicas or (dist.get_world_size() if is_joined else 1)
        self.rank = (dist.get_rank() if is_joined else 0) if rank is None else rank
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.epoch, self.consumed_samples = 0, consumed_samples

    def set_epoch(self, epoch: int, consumed_samples: int = 0) -> None:
        """The next iteration is of this epoch, from `consumed_samples` of it on."""
        self.epoch, self.consumed_samples = epoch, consumed_samples

    def __len__(self) -> int:
        return max(0, self._rows_a_rank - self.consumed_samples // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        places = np.arange(self.rank, self._rows_a_rank * self.num_replicas, self.num_replicas) % len(self.dataset)
        rows = epoch_order(places, len(self.dataset), self.seed, self.epoch, self.shuffle)
        return iter(rows[self.consumed_samples // self.num_replicas :].tolist())

    @property
    def _rows_a_rank(self) -> int:
        whole, rest = divmod(len(self.dataset), self.num_replicas)
        return whole + bool(rest and not self.drop_last)
