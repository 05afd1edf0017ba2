"""The plan of attention when a ring shares a pack: the rank that attends to each other. Worked out once a micro-batch.

Each rank holds an early and a late chunk of every sample (parallel/sequence_shares.py). The keys and values of all
ranks come by in turn; what this rank's queries may see of those of rank `source` is one of three plain cases:

    source == rank   everything, causally
    source <  rank   its early chunk only, all of it: it lies before both of ours, and its late chunk after both
    source >  rank   both its chunks, from our late chunk only: both lie before it, and after our early one
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from openrlhf.batching.micro_batch import to_device
from openrlhf.parallel.sequence_shares import Span, sample_share


@dataclass(frozen=True)
class Rows:
    """Some of a rank's tokens: of each sample of a block, the same chunk or chunks."""

    index: Tensor  # (rows,) int64: where they stand among the rank's tokens
    positions: Tensor  # (rows,) int64: where they stand in their samples
    borders: Tensor  # (samples + 1,) int32: where each sample begins among the rows
    spans: tuple[tuple[Span, ...], ...]  # of each sample: its chunks, as positions; none is empty

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """How many rows each sample has; none has 0."""
        return tuple(sum(map(_size, spans)) for spans in self.spans)


@dataclass(frozen=True)
class Block:
    """The queries of this rank and the keys of one rank that they see; without a mask, or causally (equal rows)."""

    queries: Rows
    keys: Rows
    is_causal: bool


@dataclass(frozen=True)
class Ring:
    """Handed to the attention of every layer as the keyword `ring`.

    Its tensors are on the device, and all numbers that the host needs are beside them: a layer never waits.
    """

    group: ProcessGroup
    rank: int
    size: int
    num_tokens: tuple[int, ...]  # that each rank holds
    blocks: tuple[Block, ...]  # by source rank
    sample_lengths: tuple[int, ...]  # in tokens, of the whole pack
    head_stride: int  # key heads that travel at a time; 0: all

    @property
    def longest_sample(self) -> int:
        return max(self.sample_lengths)

    @property
    def next_rank(self) -> int:
        return dist.get_global_rank(self.group, (self.rank + 1) % self.size)

    @property
    def previous_rank(self) -> int:
        return dist.get_global_rank(self.group, (self.rank - 1) % self.size)


def borders_of_samples(
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    sequence_group: ProcessGroup | None,
    head_stride: int,
    device: torch.device,
) -> dict[str, Any]:
    """The keywords in which transformers' flash kernels and ours are told where samples end; none for a padded batch.

    `cu_seq_lens_host` is ours: layers that loop over samples would wait for the device to read the others.

    Arguments as of `ScoringModel.score_targets` and `make_ring`.
    """
    if cu_seqlens is None:
        return {}
    if sequence_group is not None:
        return {"ring": make_ring(sequence_group, cu_seqlens, head_stride, device)}
    borders = to_device(cu_seqlens, device)
    return dict(
        cu_seq_lens_q=borders,
        cu_seq_lens_k=borders,
        max_length_q=max_seqlen,
        max_length_k=max_seqlen,
        cu_seq_lens_host=cu_seqlens.cpu(),
    )


def make_ring(group: ProcessGroup, cu_seqlens: Tensor, head_stride: int, device: torch.device) -> Ring:
    """The plan of this rank.

    Args:
        cu_seqlens: (num_samples + 1,) borders of the samples of the whole pack, on the host.
        device: where the layers compute.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    assert size > 1, "a rank that holds the whole pack needs no ring: give no sequence_group"
    lengths = cu_seqlens.diff().tolist()
    shares = [[sample_share(length, holder, size) for length in lengths] for holder in range(size)]
    return Ring(
        group=group,
        rank=rank,
        size=size,
        num_tokens=tuple(sum(_size(span) for spans in share for span in spans) for share in shares),
        blocks=tuple(_block(shares, rank, source, device) for source in range(size)),
        sample_lengths=tuple(lengths),
        head_stride=head_stride,
    )


def _block(shares: list[list[tuple[Span, Span]]], rank: int, source: int, device: torch.device) -> Block:
    # The three cases at the head of this file; samples of which neither side holds a token are left out.
    query_chunks = (1,) if source > rank else (0, 1)
    key_chunks = (0,) if source < rank else (0, 1)
    pairs = list(zip(shares[rank], shares[source], strict=True))
    is_seen = [_any(query, query_chunks) and _any(key, key_chunks) for query, key in pairs]
    return Block(
        queries=_rows(shares[rank], query_chunks, is_seen, device),
        keys=_rows(shares[source], key_chunks, is_seen, device),
        is_causal=source == rank,
    )


def _rows(share: list[tuple[Span, Span]], chunks: tuple[int, ...], is_chosen: list[bool], device: torch.device) -> Rows:
    index, positions = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    chosen_spans: list[tuple[Span, ...]] = []
    place = 0  # of the next chunk among the rank's tokens, which stand sample by sample, the early chunk first
    for spans, chosen in zip(share, is_chosen, strict=True):
        of_sample = []
        for chunk, span in enumerate(spans):
            if chosen and chunk in chunks and _size(span):
                index.append(torch.arange(place, place + _size(span)))
                positions.append(torch.arange(*span))
                of_sample.append(span)
            place += _size(span)
        if chosen:
            chosen_spans.append(tuple(of_sample))
    lengths = [sum(map(_size, spans)) for spans in chosen_spans]
    borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return Rows(
        to_device(torch.cat(index), device),
        to_device(torch.cat(positions), device),
        to_device(borders, device),
        tuple(chosen_spans),
    )


def _any(spans: tuple[Span, Span], chunks: tuple[int, ...]) -> bool:
    return any(_size(spans[chunk]) > 0 for chunk in chunks)


def _size(span: Span) -> int:
    return span[1] - span[0]
