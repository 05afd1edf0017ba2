"""Each policy picks what slow loops pick, whatever the order of the rows; the control is a draw, of like lengths."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrlhf.config import SelectSettings
from openrlhf.rejection.policies import EMPTY, NO_VERDICT, NUM_LENGTH_BINS, REASONS, REPEATED, TRUNCATED, select_answers
from tests.rejection.scored import answer, answers, candidates_of, picked_slowly, settings_drawn

many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picked(path, rows, chosen, like=None):
    return select_answers(candidates_of(path, rows), chosen, like).picked.tolist()


def as_set(numbers):
    return {tuple(one) if isinstance(one, list | tuple) else one for one in numbers}


@many
@given(rows=answers(), chosen=settings_drawn)
def test_every_policy_picks_what_slow_loops_pick(tmp_path, rows, chosen):
    candidates = candidates_of(tmp_path / "rows.jsonl", rows)
    found = select_answers(candidates, chosen).picked.tolist()
    assert len(as_set(found)) == len(found)
    assert as_set(found) == as_set(picked_slowly(rows, candidates.tie.tolist(), chosen))


@many
@given(rows=answers(), chosen=settings_drawn, is_random=st.booleans(), order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(tmp_path, rows, chosen, is_random, order):
    if is_random:
        chosen = SelectSettings(policy="random", k=2, dedupe=chosen.dedupe)
    shuffled = order.sample(rows, len(rows))
    first, second = (
        [[of[n]["sample_index"] for n in np.atleast_1d(one)] for one in picked(tmp_path / "rows.jsonl", of, chosen)]
        for of in (rows, shuffled)
    )
    assert first == second


@many
@given(rows=answers(), chosen=settings_drawn)
def test_every_answer_has_one_reason(tmp_path, rows, chosen):
    selection = select_answers(candidates_of(tmp_path / "rows.jsonl", rows), chosen)
    assert sum(selection.left_out().values()) + selection.is_kept.sum() == len(rows)
    assert set(np.flatnonzero(selection.is_kept)) == set(selection.picked.reshape(-1))


def test_pairs_are_never_of_equal_rewards_or_texts(tmp_path):
    rows = [answer("a", "x", 1.0, 0), answer("a", "y", 1.0, 1), answer("b", "x", 1.0, 2), answer("b", "x ", 0.0, 3)]
    assert picked(tmp_path / "rows.jsonl", rows, SelectSettings(policy="pairs", k=9)) == []


def test_the_reasons_are_counted_by_the_first_that_holds(tmp_path):
    rows = [
        answer(index=0), answer(index=0), answer(index=1, reward=None), answer(index=2, response=" \n"),
        answer(index=3, finish_reason="length"), answer(index=4, reward=float("nan")),
    ]  # fmt: skip
    selection = select_answers(candidates_of(tmp_path / "rows.jsonl", rows), SelectSettings())
    assert selection.left_out() == {REPEATED: 1, NO_VERDICT: 2, EMPTY: 1, TRUNCATED: 1}
    assert REASONS[0] == "selected"


def control(lengths, like, seed=1, tmp_path=None, **more):
    rows = [answer(f"p{n % 7}", f"text {n}", n % 3, n, num_tokens=length) for n, length in enumerate(lengths)]
    chosen = SelectSettings(policy="random", like="x", seed=seed, **more)
    return picked(tmp_path / "rows.jsonl", rows, chosen, np.array(like))


def test_the_control_has_the_size_of_the_selection_and_any_answer_may_be_in_it(tmp_path):
    drawn = [control([5] * 30, [5] * 10, seed, tmp_path) for seed in range(60)]
    assert {len(numbers) for numbers in drawn} == {10}
    counts = Counter(number for numbers in drawn for number in numbers)
    assert len(counts) == 30
    assert max(counts.values()) < 40  # each is expected 20 times; 5 deviations


def test_the_control_does_not_follow_the_rewards(tmp_path):
    rewards = [n % 3 for seed in range(60) for n in control([5] * 30, [5] * 10, seed, tmp_path)]
    assert 0.85 < np.mean(rewards) < 1.15


def test_matched_lengths_are_those_of_the_selection_bin_by_bin(tmp_path):
    rng = random.Random(0)
    lengths = [rng.randint(1, 1000) for _ in range(2000)]
    like = sorted(lengths)[:100] + sorted(lengths)[-20:]
    chosen = control(lengths, like, 1, tmp_path, match_lengths=True)
    edges = np.quantile(lengths, np.linspace(0, 1, NUM_LENGTH_BINS + 1)[1:-1], method="lower")
    bins = [
        np.bincount(np.searchsorted(edges, of), minlength=NUM_LENGTH_BINS) for of in (like, np.array(lengths)[chosen])
    ]
    assert bins[0].tolist() == bins[1].tolist()
    shortest = [n for n in chosen if lengths[n] < 500]
    assert len(set(shortest) & set(np.argsort(lengths)[:100])) < 100  # of the bin, not the selection itself


def test_what_a_bin_of_lengths_lacks_comes_from_the_others(tmp_path):
    assert len(control([1] * 5 + list(range(10, 60)), [1] * 20, 1, tmp_path, match_lengths=True)) == 20


@pytest.mark.parametrize(("k", "cap", "size"), [(None, None, 7), (3, None, 21), (None, 2, 14), (3, 1, 7)])
def test_a_draw_without_a_selection_is_k_a_prompt(tmp_path, k, cap, size):
    rows = [answer(f"p{n % 7}", f"text {n}", 1, n) for n in range(70)]
    chosen = SelectSettings(policy="random", k=k, max_per_prompt=cap)
    found = picked(tmp_path / "rows.jsonl", rows, chosen)
    assert len(found) == size
    assert max(Counter(n % 7 for n in found).values()) == size // 7
