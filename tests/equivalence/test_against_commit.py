"""The comparison with an earlier commit sees what it should see."""

from __future__ import annotations

import math

import pytest
import torch

from tests.equivalence.against_commit import Outcome, unlike_records, unlike_weights

BEFORE = [{"global_step": 1, "loss": 0.1, "step_seconds": 2.0}, {"global_step": 1, "eval_loss": None}]


def after(**changes):
    return [{**BEFORE[0], **changes}, BEFORE[1]]


@pytest.mark.parametrize("records", [BEFORE, after(step_seconds=3.0), after(token_accuracy=0.5)])
def test_times_may_differ_and_names_may_follow(records):
    assert list(unlike_records(BEFORE, records)) == []


@pytest.mark.parametrize(
    "records",
    [
        after(loss=math.nextafter(0.1, 1)),
        after(loss=None),
        BEFORE[:1],
        [{"loss": 0.1, "global_step": 1, "step_seconds": 2.0}, BEFORE[1]],
        [{"global_step": 1, "loss": 0.1}, BEFORE[1]],
    ],
)
def test_a_number_a_line_a_name_or_their_order_is_seen(records):
    assert len(list(unlike_records(BEFORE, records))) == 1


@pytest.mark.parametrize(
    "weights",
    [
        {"a": torch.tensor([1.0, -0.0])},
        {"a": torch.tensor([1.0 + 2**-23, 0.0])},
        {"a": torch.tensor([1.0, 0.0], dtype=torch.bfloat16)},
        {"a": torch.tensor([[1.0, 0.0]])},
        {"a": torch.tensor([1.0, 0.0]), "b": torch.zeros(1)},
    ],
)
def test_a_bit_of_a_weight_is_seen(weights):
    before = Outcome([], {"a": torch.tensor([1.0, 0.0])})
    assert list(unlike_weights(before, before)) == []
    assert len(list(unlike_weights(before, Outcome([], weights)))) == 1
