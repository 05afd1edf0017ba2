"""The loss from log-probs."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models import SFTLoss, weighted_nll_sum


def test_masked_mean():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    assert SFTLoss()(log_probs, mask).item() == pytest.approx((1 + 3 + 6) / 3)


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


def test_weighted_sum_is_float32_and_adds_up():
    log_probs = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.bfloat16)
    weights = torch.tensor([1.0, 0.5, 0.0])
    whole = weighted_nll_sum(log_probs, weights)
    parts = weighted_nll_sum(log_probs[:1], weights[:1]) + weighted_nll_sum(log_probs[1:], weights[1:])
    assert whole.dtype == torch.float32
    assert whole.item() == parts.item() == 2.0
    assert weighted_nll_sum(log_probs[:0], weights[:0]).item() == 0.0
