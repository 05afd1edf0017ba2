"""The loss from log-probs."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models import SFTLoss


def test_masked_mean():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    assert SFTLoss()(log_probs, mask).item() == pytest.approx((1 + 3 + 6) / 3)


@pytest.mark.parametrize(("token_level", "expected"), [(True, 8.6 / 2.2), (False, (3 + 4) / 2)])
def test_small_weights_make_a_mean_too(token_level, expected):
    log_probs = torch.tensor([[-2.0, -4.0], [-4.0, -9.0]])
    weights = torch.tensor([[0.1, 0.1], [2.0, 0.0]])
    assert SFTLoss(token_level)(log_probs, weights).item() == pytest.approx(expected)
    assert SFTLoss(token_level)(log_probs[:1], weights[:1]).item() == pytest.approx(3.0)


def test_what_is_masked_counts_for_nothing_even_if_infinite():
    log_probs = torch.tensor([[-1.0, -torch.inf, torch.nan]], requires_grad=True)
    loss = SFTLoss()(log_probs, torch.tensor([[True, False, False]]))
    loss.backward()
    assert loss.item() == 1.0
    assert log_probs.grad.tolist() == [[-1.0, 0.0, 0.0]]


def test_a_mask_without_targets_gives_zero_and_no_gradient():
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss = SFTLoss()(log_probs, torch.zeros(1, 2))
    loss.backward()
    assert loss.item() == 0.0
    assert not log_probs.grad.any()


def test_it_is_summed_in_float32():
    loss = SFTLoss()(torch.full((1, 400), -1.25, dtype=torch.bfloat16), torch.ones(1, 400))
    assert loss.dtype == torch.float32
    assert loss.item() == 1.25
