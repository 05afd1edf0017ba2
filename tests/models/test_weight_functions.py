"""Weights that are computed from the log-probs count as constants: gradients are those of autograd in float64."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models import Actor
from openrlhf.models.head.log_prob_head import LogProbHead
from openrlhf.models.head.tiles import PLAIN
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, gradients, make_samples, reference_log_probs
from tests.models.test_head_probe import SquaresLogits, model_of

NUM_TARGETS, HIDDEN, VOCAB = 37, 8, 1000
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
BASE_WEIGHTS = torch.linspace(0.1, 1, NUM_TARGETS)


def by_probability(log_probs):
    """Those of DFT (arXiv 2508.05629)."""
    return log_probs.exp() * BASE_WEIGHTS[: len(log_probs)]


def draw(dtype):
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(HIDDEN, VOCAB, bias=False)
    linear.weight = torch.nn.Parameter(torch.randn(VOCAB, HIDDEN, generator=generator).to(dtype))
    hidden = torch.randn(NUM_TARGETS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    return LogProbHead(linear, PLAIN), hidden, torch.randint(0, VOCAB, (NUM_TARGETS,), generator=generator)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_gradients_are_those_of_autograd(dtype):
    tolerance = TOLERANCES[dtype]
    head, hidden, target_ids = draw(dtype)
    scores = head(hidden, target_ids, by_probability)
    found = torch.autograd.grad(-3 * scores.weighted_sum, (hidden, head.weight))
    exact = [part.detach().double().requires_grad_() for part in (hidden, head.weight)]
    log_probs = (exact[0] @ exact[1].T).log_softmax(-1).gather(1, target_ids[:, None])[:, 0]
    expected_sum = (by_probability(log_probs.detach()) * log_probs).sum()
    assert_close(scores.weighted_sum.detach(), expected_sum.detach(), tolerance, "weighted sum")
    for name, a, b in zip(("hidden", "weight"), found, torch.autograd.grad(-3 * expected_sum, exact), strict=True):
        assert_close(a, b, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_function_gives_the_bits_of_its_weights(dtype):
    head, hidden, target_ids = draw(dtype)
    weights = by_probability(head(hidden, target_ids).log_probs.detach())
    found, expected = head(hidden, target_ids, by_probability), head(hidden, target_ids, weights)
    assert torch.equal(found.weighted_sum, expected.weighted_sum)
    sources = (hidden, head.weight)
    for a, b in zip(*(torch.autograd.grad(s.weighted_sum, sources) for s in (found, expected)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kept_bytes", [0, 2**30], ids=["computed again", "kept"])
def test_it_is_called_once_with_log_probs_that_have_no_gradient(monkeypatch, kept_bytes):
    monkeypatch.setattr("openrlhf.models.head.log_prob_head.KEPT_BYTES_CPU", kept_bytes)
    head, hidden, target_ids = draw(torch.float64)
    calls = []
    scores = head(hidden, target_ids, lambda log_probs: calls.append(log_probs) or torch.ones_like(log_probs))
    assert len(calls) == 1
    assert not calls[0].requires_grad
    assert torch.equal(calls[0], scores.log_probs)


def test_weights_of_another_shape_are_refused():
    head, hidden, target_ids = draw(torch.float32)
    with pytest.raises(AssertionError, match="weights"):
        head(hidden, target_ids, lambda log_probs: log_probs.exp().sum())


@pytest.mark.parametrize("head", ["plain", "other"])
def test_an_actor_trains_with_them_whatever_its_head(head):
    samples = make_samples()
    make = (lambda: tiny_model("llama", torch.float64)) if head == "plain" else (lambda: model_of(SquaresLogits))
    reference = make()
    log_probs = reference_log_probs(reference, samples)
    (by_probability(log_probs.detach()) * log_probs).sum().backward()
    actor = Actor(make(), packing_samples=True)
    actor.score_targets(**samples.packed(), target_weights=by_probability).weighted_sum.backward()
    expected = gradients(reference)
    for name, gradient in gradients(actor.model).items():
        assert_close(gradient, expected[name], 1e-6 if head == "other" else 1e-12, f"gradient of {name}")


@pytest.mark.parametrize("head", ["plain", "other"])
@pytest.mark.parametrize("weights", [torch.zeros(0), by_probability], ids=["tensor", "function"])
def test_no_target_still_touches_every_parameter(head, weights):
    model = tiny_model("llama", torch.float64) if head == "plain" else model_of(SquaresLogits)
    actor = Actor(model, packing_samples=True)
    inputs = make_samples().packed()
    inputs["target_index"], inputs["target_ids"] = inputs["target_index"][:0], inputs["target_ids"][:0]
    scores = actor.score_targets(**inputs, target_weights=weights)
    assert scores.weighted_sum.item() == 0.0
    scores.weighted_sum.backward()
    for name, parameter in actor.model.named_parameters():
        assert parameter.grad is not None, f"{name} is not part of the graph"
        assert not parameter.grad.any(), f"{name} has a gradient of something"
