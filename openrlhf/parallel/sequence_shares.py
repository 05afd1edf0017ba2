"""Shares of a pack's tokens that the ranks of a sequence group hold: pure functions of lengths.

Every sample is shared by itself, in a zigzag: it is cut in 2N chunks (N ranks), and rank r holds chunks r and
2N-1-r. Causal attention costs more the later a token stands, so each rank gets an early and a late chunk and all ranks
have the same work. Chunk i of a sample of length L begins at floor(i*L / 2N): no length needs to divide.
"""

from __future__ import annotations

import torch
from torch import Tensor

Span = tuple[int, int]


def sample_share(length: int, ring_rank: int, ring_size: int) -> tuple[Span, Span]:
    """The two spans [begin, end) of a sample of `length` tokens that rank `ring_rank` of `ring_size` holds."""
    assert 0 <= ring_rank < ring_size
    num_chunks = 2 * ring_size

    def chunk(index: int) -> Span:
        return index * length // num_chunks, (index + 1) * length // num_chunks

    return chunk(ring_rank), chunk(num_chunks - 1 - ring_rank)


def sequence_share(cu_seqlens: Tensor, ring_rank: int, ring_size: int) -> Tensor:
    """Positions in the whole pack of the tokens that this rank holds, in rising order.

    Args:
        cu_seqlens: (num_samples + 1,) borders of the samples in the whole pack.

    Returns:
        (T_local,) int64 on the device of `cu_seqlens`. Over all ranks, every position stands exactly once.
    """
    borders = cu_seqlens.tolist()
    spans = [
        torch.arange(start + begin, start + end)
        for start, stop in zip(borders, borders[1:], strict=False)
        for begin, end in sample_share(stop - start, ring_rank, ring_size)
    ]
    positions = torch.cat(spans) if spans else torch.empty(0, dtype=torch.long)
    return positions.to(cu_seqlens.device)
