"""A pack is shared whole, each token once, and with even work."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf.parallel.sequence_shares import sample_share, sequence_share

packs = st.lists(st.integers(1, 40), min_size=1, max_size=6)
ring_sizes = st.integers(1, 5)


def borders_of(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


@given(packs, ring_sizes)
@settings(deadline=None)
def test_every_token_is_held_once(lengths, ring_size):
    shares = [sequence_share(borders_of(lengths), rank, ring_size) for rank in range(ring_size)]
    assert torch.cat(shares).sort().values.tolist() == list(range(sum(lengths)))


@given(packs, ring_sizes)
@settings(deadline=None)
def test_shares_rise_and_are_of_even_size(lengths, ring_size):
    shares = [sequence_share(borders_of(lengths), rank, ring_size) for rank in range(ring_size)]
    for share in shares:
        assert share.tolist() == sorted(share.tolist())
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 2 * len(lengths)


def test_a_ring_of_one_holds_all():
    assert sequence_share(borders_of([3, 4]), 0, 1).tolist() == list(range(7))


def test_zigzag():
    assert [sample_share(16, rank, 2) for rank in range(2)] == [((0, 4), (12, 16)), ((4, 8), (8, 12))]


def test_causal_work_is_even():
    length, ring_size = 4096, 4
    work = []
    for rank in range(ring_size):
        spans = sample_share(length, rank, ring_size)
        work.append(sum(place + 1 for begin, end in spans for place in range(begin, end)))
    assert max(work) / min(work) < 1.001
