"""Which ranks share a pack, and where its samples end."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ring:
    """Handed to the attention of every layer as the keyword `ring`."""

    group: ProcessGroup
    borders: tuple[int, ...]  # of the samples in the whole pack, 0 first
    head_stride: int  # key heads that travel at a time; 0: all
