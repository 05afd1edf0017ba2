"""Log-probs in tiles equal those from full logits, values and gradients, however the tiles fall."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models.head.log_prob_head import target_log_probs, weighted_log_probs
from openrlhf.models.head.tiles import LogitTransform
from tests.models.batches import assert_close

TRANSFORMS = [
    LogitTransform(),
    LogitTransform(scale=0.3),
    LogitTransform(cap=2.0),
    LogitTransform(temperature=0.7),
    LogitTransform(scale=1.3, cap=3.0, temperature=0.7),
]
NUM_TARGETS, HIDDEN, VOCAB = 37, 8, 1000


def inputs(dtype=torch.float64, with_bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = dict(hidden=(NUM_TARGETS, HIDDEN), weight=(VOCAB, HIDDEN), bias=(VOCAB,))
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }
    target_ids = torch.randint(0, VOCAB, (NUM_TARGETS,), generator=generator)
    target_ids[:2] = torch.tensor([0, VOCAB - 1])  # both ends of the vocabulary
    return {**tensors, "bias": tensors["bias"] if with_bias else None, "target_ids": target_ids}


def by_full_logits(hidden, weight, bias, target_ids, transform):
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    logits = logits * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    return (logits / transform.temperature).log_softmax(-1).gather(1, target_ids[:, None])[:, 0]


def assert_equal_to_full_logits(tensors, transform, tile_bytes, tolerance):
    found = target_log_probs(**tensors, transform=transform, tile_bytes=tile_bytes).log_probs
    expected = by_full_logits(**tensors, transform=transform)
    assert_close(found.detach(), expected.detach(), tolerance, "log-probs")
    sources = {name: t for name, t in tensors.items() if t is not None and t.requires_grad}
    weights = torch.linspace(-1, 1, NUM_TARGETS, dtype=torch.float64)
    found_grads = torch.autograd.grad((found * weights).sum(), sources.values())
    expected_grads = torch.autograd.grad((expected * weights).sum(), sources.values())
    for name, a, b in zip(sources, found_grads, expected_grads, strict=True):
        assert a.dtype == tensors[name].dtype
        assert_close(a, b, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_transforms(transform, with_bias):
    assert_equal_to_full_logits(inputs(with_bias=with_bias), transform, 4 * NUM_TARGETS * 300, 1e-13)


@pytest.mark.parametrize("tile_bytes", [1, 4 * NUM_TARGETS * 333, 2**30])
def test_tile_sizes(tile_bytes):
    assert_equal_to_full_logits(inputs(), LogitTransform(cap=3.0), tile_bytes, 1e-13)


def test_several_rows_of_tiles(monkeypatch):
    monkeypatch.setattr("openrlhf.models.head.tiles._MAX_TILE_ROWS", 10)
    assert_equal_to_full_logits(inputs(), LogitTransform(), 1, 1e-13)


def test_half_precision_sums_in_float32():
    tensors = inputs(torch.bfloat16)
    assert target_log_probs(**tensors, tile_bytes=1).log_probs.dtype == torch.float32
    assert_equal_to_full_logits(tensors, LogitTransform(), 1, 0.02)


def test_huge_logits_stay_finite():
    tensors = inputs(torch.float32)
    with torch.no_grad():
        tensors["hidden"] *= 1e4
    log_probs = target_log_probs(**tensors, tile_bytes=1).log_probs
    log_probs.sum().backward()
    assert log_probs.isfinite().all()
    assert tensors["weight"].grad.isfinite().all()


def test_a_frozen_weight_gets_no_gradient():
    tensors = inputs()
    tensors["weight"].requires_grad_(False)
    target_log_probs(**tensors).log_probs.sum().backward()
    assert tensors["weight"].grad is None
    assert tensors["hidden"].grad is not None


@pytest.mark.parametrize("kept_bytes", [0, 2**30], ids=["computed again", "kept"])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("tile_rows", [10, 4096])
def test_the_weighted_sum_has_the_gradients_of_its_log_probs(monkeypatch, kept_bytes, transform, tile_rows):
    monkeypatch.setattr("openrlhf.models.head.tiles._MAX_TILE_ROWS", tile_rows)
    tensors, weights = inputs(), torch.linspace(0, 1, NUM_TARGETS, dtype=torch.float64)
    plain = by_full_logits(**tensors, transform=transform)
    scores = weighted_log_probs(
        **tensors, target_weights=weights, transform=transform, tile_bytes=4 * NUM_TARGETS * 300, kept_bytes=kept_bytes
    )
    log_probs, weighted_sum = scores.log_probs, scores.weighted_sum
    assert_close(log_probs, plain.detach(), 1e-13, "log-probs")
    assert_close(weighted_sum.detach(), (plain * weights).sum().detach(), 1e-13, "sum")
    sources = [tensors["hidden"], tensors["weight"], tensors["bias"]]
    found = torch.autograd.grad(-3 * weighted_sum, sources)
    expected = torch.autograd.grad(-3 * (plain * weights).sum(), sources)
    for name, a, b in zip(("hidden", "weight", "bias"), found, expected, strict=True):
        assert_close(a, b, 1e-13, f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept_bytes", [0, 2**30], ids=["computed again", "kept"])
def test_both_forms_give_the_same_bits(dtype, kept_bytes):
    tensors, weights = inputs(dtype), torch.linspace(0, 1, NUM_TARGETS)
    sources = [tensors["hidden"], tensors["weight"], tensors["bias"]]
    log_probs = target_log_probs(**tensors).log_probs
    scores = weighted_log_probs(**tensors, target_weights=weights, kept_bytes=kept_bytes)
    looked_at, weighted_sum = scores.log_probs, scores.weighted_sum
    assert torch.equal(looked_at, log_probs.detach())
    assert not looked_at.requires_grad
    expected = torch.autograd.grad((log_probs * weights).sum(), sources)
    for a, b in zip(torch.autograd.grad(weighted_sum, sources), expected, strict=True):
        assert torch.equal(a, b)
