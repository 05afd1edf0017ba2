"""The guard's veto: a norm that is not finite, or far above the recent ones, holds the update back."""

from __future__ import annotations

import math

import pytest
import torch

from openrlhf.engine.step_guard import STEPS_BEFORE_SPIKES_COUNT, StepGuard, _square_norm
from tests.trainer.plain_engine import PlainEngine


class OneWeight:
    """An engine with one weight, which loses its gradient at every update."""

    def __init__(self) -> None:
        self.engine = PlainEngine(torch.nn.Linear(1, 1, bias=False), lr=1.0)
        self.weight = self.engine.module.weight

    def step(self, guard: StepGuard, grad: float):
        self.weight.data.zero_()
        self.weight.grad = torch.tensor([[grad]])
        outcome = guard.step(self.engine)
        assert outcome.is_applied == (self.weight.item() != 0.0), "what the guard says is not what was done"
        return outcome


@pytest.mark.parametrize("grad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_held_back(grad):
    outcome = OneWeight().step(StepGuard(), grad)
    assert not outcome.is_applied
    assert "not finite" in outcome.reason


def test_a_spike_is_what_exceeds_the_factor_times_the_usual_norm():
    guard, model = StepGuard(max_spike=3.0), OneWeight()
    for _ in range(STEPS_BEFORE_SPIKES_COUNT):
        assert model.step(guard, 2.0).is_applied
    assert model.step(guard, 5.9).is_applied
    assert not model.step(guard, 6.1).is_applied
    assert model.step(guard, 2.0).is_applied


def test_before_there_is_a_history_nothing_is_a_spike():
    guard, model = StepGuard(max_spike=3.0), OneWeight()
    norms = [2.0] * (STEPS_BEFORE_SPIKES_COUNT - 1)
    assert all(model.step(guard, norm).is_applied for norm in [*norms, 50.0])


def test_without_a_factor_no_finite_step_is_held_back():
    guard, model = StepGuard(), OneWeight()
    assert all(model.step(guard, norm).is_applied for norm in [1.0] * 40 + [1e6])


def test_the_history_goes_on_after_a_resume():
    before, after, model = StepGuard(3.0), StepGuard(3.0), OneWeight()
    for _ in range(STEPS_BEFORE_SPIKES_COUNT):
        model.step(before, 2.0)
    after.load_state_dict(before.state_dict())
    assert not model.step(after, 7.0).is_applied


def test_the_norm_of_no_gradients_is_where_the_model_is():
    """NCCL adds up no tensor of the CPU: a rank that holds no shared-out gradient takes part all the same."""
    assert _square_norm([], torch.device("meta")).device.type == "meta"
