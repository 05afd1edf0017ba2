"""Layouts: every sample once, as many micro-batches on every rank, within the budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf.batching.layout import FixedSize, TokenBudget
from openrlhf.errors import UserError

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)
NUM_RANKS = st.integers(1, 5)


def units(lengths):
    """Units of one sequence each."""
    return [(length,) for length in lengths]


def places_of(layout):
    return sorted(place for micro_step in layout for places in micro_step for place in places)


@given(LENGTHS, NUM_RANKS, st.integers(1, 6))
def test_fixed_size_places_every_sample_once(lengths, num_ranks, micro_batch_size):
    layout = FixedSize(micro_batch_size)(units(lengths), num_ranks)
    assert places_of(layout) == list(range(len(lengths)))
    assert all(len(micro_step) == num_ranks for micro_step in layout)
    assert all(len(places) <= micro_batch_size for micro_step in layout for places in micro_step)


@given(LENGTHS, NUM_RANKS, st.integers(50, 120))
def test_packed_budget_places_every_sample_once_and_holds(lengths, num_ranks, max_tokens):
    layout = TokenBudget(max_tokens, packed=True)(units(lengths), num_ranks)
    assert places_of(layout) == list(range(len(lengths)))
    assert all(len(micro_step) == num_ranks for micro_step in layout)
    assert all(sum(lengths[p] for p in places) <= max_tokens for micro_step in layout for places in micro_step)


@given(LENGTHS, NUM_RANKS, st.integers(50, 120))
def test_padded_budget_counts_the_padding(lengths, num_ranks, max_tokens):
    layout = TokenBudget(max_tokens, packed=False)(units(lengths), num_ranks)
    assert places_of(layout) == list(range(len(lengths)))
    for places in (places for micro_step in layout for places in micro_step if places):
        assert max(lengths[p] for p in places) * len(places) <= max_tokens


def test_packed_budget_is_balanced_over_ranks():
    lengths = [30, 20, 20, 10, 10, 10]
    layout = TokenBudget(100, packed=True)(units(lengths), num_data_ranks=2)
    assert [[sum(lengths[p] for p in places) for places in step] for step in layout] == [[50, 50]]


def test_packed_budget_fills_bins_that_balancing_alone_would_overfill():
    lengths = [60, 50, 40, 30, 20]
    layout = TokenBudget(100, packed=True)(units(lengths), num_data_ranks=2)
    assert [[sum(lengths[p] for p in places) for places in step] for step in layout] == [[100, 100]]


def test_a_sample_beyond_the_budget_is_refused():
    with pytest.raises(UserError, match="a sample of 51 tokens does not fit --train.max_tokens_per_micro_batch 50"):
        TokenBudget(50, packed=True)(units([3, 51]), 1)


def test_fixed_size_puts_like_lengths_together():
    layout = FixedSize(2)(units([9, 1, 8, 2]), num_data_ranks=1)
    assert layout == [[(0, 2)], [(3, 1)]]


PAIRS = st.lists(st.tuples(st.integers(1, 25), st.integers(1, 25)), min_size=1, max_size=30)


@given(PAIRS, NUM_RANKS, st.integers(50, 120))
def test_a_units_sequences_are_never_parted_and_all_count(pairs, num_ranks, max_tokens):
    packed = TokenBudget(max_tokens, packed=True)(pairs, num_ranks)
    padded = TokenBudget(max_tokens, packed=False)(pairs, num_ranks)
    assert places_of(packed) == places_of(padded) == list(range(len(pairs)))
    assert all(sum(sum(pairs[p]) for p in places) <= max_tokens for step in packed for places in step)
    for places in (places for step in padded for places in step if places):
        assert max(max(pairs[p]) for p in places) * 2 * len(places) <= max_tokens
