"""pass@k is the share of draws of k answers in which one passes; its interval holds the truth as often as it says."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from openrlhf.rejection.equations import equations_of
from openrlhf.rejection.statistics import mean_interval, pass_at_k, pass_statistics, passes_by_prompt


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("num_passed", range(6))
def test_pass_at_k_is_the_share_of_all_draws(k, num_passed):
    answers = [True] * num_passed + [False] * (5 - num_passed)
    draws = [any(draw) for draw in itertools.combinations(answers, k)]
    assert pass_at_k(np.array([5]), np.array([num_passed]), k)[0] == pytest.approx(np.mean(draws), abs=1e-12)


def test_pass_at_k_of_many_answers_does_not_overflow():
    assert 0 < pass_at_k(np.array([2000]), np.array([3]), 500)[0] < 1


def test_the_interval_holds_the_mean_about_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.random(200) < 0.3, seed) for seed in range(200)]
    assert 0.9 < np.mean([low <= 0.3 <= high for low, high in intervals]) < 0.99


def test_a_missing_verdict_is_no_failed_answer():
    prompt, reward = np.array([0, 0, 0, 1]), np.array([1.0, np.nan, 0.5, np.nan])
    judged, passed = passes_by_prompt(prompt, reward, 1.0, 3)
    assert (judged.tolist(), passed.tolist()) == ([2, 0, 0], [1, 0, 0])
    assert pass_statistics(judged, passed)["pass@1"] == 0.5


def test_a_k_that_few_prompts_have_is_left_out():
    assert set(pass_statistics(np.array([2, 2, 2, 8]), np.array([1, 0, 2, 8]))["intervals"]) == {"pass@1", "pass@2"}


@pytest.mark.parametrize(
    ("text", "equations"),
    [
        ("48/2 = <<48/2=24>>24 and <<24+48 = 72>>72", ("48/2=24", "24+48=72")),
        ("She has 3 + 4 = 7 apples, and 7 × $1,200 = $8,400.", ("3+4=7", "7*1200=8400")),
        ("1. 3 x 4 = 12\n2. (12 - 2) / 5 = 2 = 4/2", ("3*4=12", "(12-2)/5=2=4/2")),
        ("Let x = 7. So y = 7", ()),
        ("Then 5 2+3=5", ("2+3=5",)),
        ("no sums at all", ()),
    ],
)
def test_the_equations_of_a_text(text, equations):
    assert equations_of(text) == equations


def test_equal_equations_in_another_order_are_another_way():
    assert equations_of("1+1=2, 2+2=4") != equations_of("2+2=4, 1+1=2")
    assert equations_of("First, 1 + 1 = 2. Then 2+2 = 4!") == equations_of("1+1=2, 2+2=4")


@pytest.mark.parametrize(
    "text", ["1 " * 50_000 + "=", "1+" * 50_000 + "=1", "(" * 50_000 + "=1", "1=" * 50_000, "," * 50_000]
)
def test_no_text_takes_long(text):
    start = time.process_time()
    equations_of(text)
    assert time.process_time() - start < 1
