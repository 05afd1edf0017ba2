"""Layouts: every sample once, as many micro-batches on every rank, within the budget."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf.batching.layout import FixedSize, TokenBudget
from openrlhf.errors import UserError
from tests.batching import plain_layout

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


# --- the same as the plain way, at any size ---------------------------------------------------------------------------

MANY_LENGTHS = {
    "spread": np.random.default_rng(0).lognormal(5.3, 1.3, 30_000).astype(int).clip(16, 8_192),
    "two lengths": np.where(np.random.default_rng(1).random(30_000) < 0.5, 20, 4_000),
    "all alike": np.full(30_000, 1_000),
}


@given(PAIRS, NUM_RANKS, st.integers(50, 120), st.integers(1, 4))
def test_layouts_are_those_of_the_plain_way(pairs, num_ranks, max_tokens, micro_batch_size):
    for packed in (True, False):
        expected = plain_layout.TokenBudget(max_tokens, packed)(pairs, num_ranks)
        assert TokenBudget(max_tokens, packed)(pairs, num_ranks) == expected
    expected = plain_layout.FixedSize(micro_batch_size)(pairs, num_ranks)
    assert FixedSize(micro_batch_size)(pairs, num_ranks) == expected


@pytest.mark.parametrize("lengths", MANY_LENGTHS.values(), ids=MANY_LENGTHS)
def test_a_large_windows_layout_is_that_of_the_plain_way(lengths):
    for packed in (True, False):
        expected = plain_layout.TokenBudget(16_384, packed)(units(lengths.tolist()), 64)
        assert TokenBudget(16_384, packed)(lengths, 64) == expected


@given(LENGTHS, NUM_RANKS, st.integers(50, 120))
def test_a_ranks_own_part_is_that_of_the_whole_layout(lengths, num_ranks, max_tokens):
    for layout in (FixedSize(2), TokenBudget(max_tokens, packed=True), TokenBudget(max_tokens, packed=False)):
        parts = [layout.of_rank(np.array(lengths), num_ranks, rank) for rank in range(num_ranks)]
        assert [list(step) for step in zip(*parts, strict=True)] == layout(units(lengths), num_ranks)


def test_a_window_of_very_many_units_costs_little():
    """300,000 units: 0.02 s of this thread's own time, where one unit after the other took 1 s."""
    lengths = np.tile(MANY_LENGTHS["spread"], 10)
    for packed in (True, False):
        began_at = time.thread_time()
        TokenBudget(16_384, packed).of_rank(lengths, 4_096, 0)
        assert time.thread_time() - began_at < 0.3
