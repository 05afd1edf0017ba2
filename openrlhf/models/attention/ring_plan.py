"""The plan of attention in blocks, worked out once a micro-batch: for a pack that a ring shares, and for sequences that
share a prompt.

Each rank of a ring holds an early and a late chunk of every sample (parallel/sequence_shares.py). The keys and values
of all ranks come by in turn; what this rank's queries may see of those of rank `source` is one of three plain cases:

    source == rank   everything, causally
    source <  rank   its early chunk only, all of it: it lies before both of ours, and its late chunk after both
    source >  rank   both its chunks, from our late chunk only: both lie before it, and after our early one

A prompt that several sequences share stands in the pack once, as a sample of its own; each sequence's own tokens are
another sample. Then there is one more case for each rank: all that it holds of a prompt is seen by all the tokens
behind it. A rank that holds the whole pack is a ring of one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
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

    index: Tensor  # (rows,) int64: where they stand among the rank's tokens; a prompt, once for each sequence behind it
    positions: Tensor  # (rows,) int64: where they stand in their samples, or behind a prompt
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

    group: ProcessGroup | None  # None: this rank holds the whole pack
    rank: int
    size: int
    num_tokens: tuple[int, ...]  # that each rank holds
    blocks: tuple[tuple[Block, ...], ...]  # by source rank; none is empty
    sample_lengths: tuple[int, ...]  # in tokens, of the whole pack, shared prompts included
    head_stride: int  # key heads that travel at a time; 0: all
    prompt_of: tuple[int | None, ...] | None = None  # for each sample the one that it goes on from; None: none does

    @property
    def lengths(self) -> list[int]:
        """Of the samples, in tokens, without the prompts that they go on from."""
        begins = (0 if prompt is None else self.sample_lengths[prompt] for prompt in self.prompt_of or ())
        return [length - begin for length, begin in zip_longest(self.sample_lengths, begins, fillvalue=0)]

    @property
    def longest_sample(self) -> int:
        return max(self.sample_lengths)

    @property
    def next_rank(self) -> int:
        assert self.group is not None, "a ring of one sends nothing"
        return dist.get_global_rank(self.group, (self.rank + 1) % self.size)

    @property
    def previous_rank(self) -> int:
        assert self.group is not None, "a ring of one sends nothing"
        return dist.get_global_rank(self.group, (self.rank - 1) % self.size)


def borders_of_samples(
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    sequence_group: ProcessGroup | None,
    head_stride: int,
    device: torch.device,
    prompt_of: Sequence[int | None] | None = None,
) -> dict[str, Any]:
    """The keywords in which transformers' flash kernels and ours are told where samples end; none for a padded batch.

    `cu_seq_lens_host` is ours: layers that loop over samples would wait for the device to read the others.

    Arguments as of `ScoringModel.score_targets` and `make_ring`.
    """
    if cu_seqlens is None:
        return {}
    if sequence_group is not None or prompt_of is not None:
        return {"ring": make_ring(sequence_group, cu_seqlens, head_stride, device, prompt_of)}
    borders = to_device(cu_seqlens, device)
    return dict(
        cu_seq_lens_q=borders,
        cu_seq_lens_k=borders,
        max_length_q=max_seqlen,
        max_length_k=max_seqlen,
        cu_seq_lens_host=cu_seqlens.cpu(),
    )


def make_ring(
    group: ProcessGroup | None,
    cu_seqlens: Tensor,
    head_stride: int,
    device: torch.device,
    prompt_of: Sequence[int | None] | None = None,
) -> Ring:
    """The plan of this rank.

    Args:
        group: None: this rank holds the whole pack.
        cu_seqlens: (num_samples + 1,) borders of the samples of the whole pack, on the host.
        device: where the layers compute.
        prompt_of: for each sample the number of the one that it goes on from; None: none does.
    """
    rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    lengths = cu_seqlens.diff().tolist()
    shares = [[sample_share(length, holder, size) for length in lengths] for holder in range(size)]
    prompt_of = prompt_of or [None] * len(lengths)
    begins = [0 if prompt is None else lengths[prompt] for prompt in prompt_of]
    blocks = [
        (_own_block(shares, rank, source, device), _prompt_block(shares, rank, source, prompt_of, begins, device))
        for source in range(size)
    ]
    return Ring(
        group=group,
        rank=rank,
        size=size,
        num_tokens=tuple(sum(_size(span) for spans in share for span in spans) for share in shares),
        blocks=tuple(tuple(block for block in of_source if block.queries.lengths) for of_source in blocks),
        prompt_of=None if all(prompt is None for prompt in prompt_of) else tuple(prompt_of),
        sample_lengths=tuple(map(sum, zip(begins, lengths, strict=True))),
        head_stride=head_stride,
    )


_Shares = list[list[tuple[Span, Span]]]  # of each rank, of each sample: its early and its late chunk


def _own_block(shares: _Shares, rank: int, source: int, device: torch.device) -> Block:
    # The three cases at the head of this file; samples of which neither side holds a token are left out.
    query_chunks = (1,) if source > rank else (0, 1)
    key_chunks = (0,) if source < rank else (0, 1)
    pairs = enumerate(zip(shares[rank], shares[source], strict=True))
    seen = [(number, 0) for number, (query, key) in pairs if _any(query, query_chunks) and _any(key, key_chunks)]
    return Block(
        queries=_rows(shares[rank], query_chunks, seen, device),
        keys=_rows(shares[source], key_chunks, seen, device),
        is_causal=source == rank,
    )


def _prompt_block(
    shares: _Shares,
    rank: int,
    source: int,
    prompt_of: Sequence[int | None],
    begins: Sequence[int],
    device: torch.device,
) -> Block:
    """Args: begins: for each sample how many tokens of a prompt stand before it."""
    behind = [
        (number, prompt)
        for number, prompt in enumerate(prompt_of)
        if prompt is not None and _any(shares[rank][number], (0, 1)) and _any(shares[source][prompt], (0, 1))
    ]
    return Block(
        queries=_rows(shares[rank], (0, 1), [(number, begins[number]) for number, _ in behind], device),
        keys=_rows(shares[source], (0, 1), [(prompt, 0) for _, prompt in behind], device),
        is_causal=False,
    )


def _rows(
    share: list[tuple[Span, Span]], chunks: tuple[int, ...], samples: list[tuple[int, int]], device: torch.device
) -> Rows:
    """Args: samples: the number of each sample of the block, and the position that its first token has."""
    # The rank's tokens stand sample by sample, the early chunk first.
    places = [0, *accumulate(_size(span) for spans in share for span in spans)]
    index, positions = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    spans_of_samples: list[tuple[Span, ...]] = []
    for number, begin in samples:
        held = [chunk for chunk in chunks if _size(share[number][chunk])]
        spans = [(begin + first, begin + end) for first, end in (share[number][chunk] for chunk in held)]
        index += [torch.arange(places[2 * number + chunk], places[2 * number + chunk + 1]) for chunk in held]
        positions += [torch.arange(*span) for span in spans]
        spans_of_samples.append(tuple(spans))
    lengths = [sum(map(_size, spans)) for spans in spans_of_samples]
    borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return Rows(
        to_device(torch.cat(index), device),
        to_device(torch.cat(positions), device),
        to_device(borders, device),
        tuple(spans_of_samples),
    )


def _any(spans: tuple[Span, Span], chunks: tuple[int, ...]) -> bool:
    return any(_size(spans[chunk]) > 0 for chunk in chunks)


def _size(span: Span) -> int:
    return span[1] - span[0]
