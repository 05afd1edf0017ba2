"""What an optimizer step computes does not depend on how it is laid out: every layout against a float64 loop."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.equivalence.cells import Layout, train_in_layout
from tests.equivalence.reference import Curve, Recipe, train
from tests.helpers.tiny_models import tiny_model

LOSS_TOLERANCE = 1e-6  # relative
GRAD_NORM_TOLERANCE = 1e-5  # relative
WEIGHT_TOLERANCE = 1e-5  # absolute; weights are about 0.1

ONE_RANK = [
    ("qwen3", Layout(zero_stage=0, micro_batch_size=1)),
    ("qwen3", Layout(zero_stage=2, micro_batch_size=4)),
    ("qwen3", Layout(zero_stage=1, micro_batch_size=8, packed=True)),
    ("llama", Layout(zero_stage=3, micro_batch_size=2, checkpointing=True)),
    ("llama", Layout(zero_stage=2, max_tokens=64, packed=True)),
    ("gemma2", Layout(zero_stage=2, micro_batch_size=2)),
    ("gemma2", Layout(zero_stage=0, micro_batch_size=4, packed=True, checkpointing=True)),
    ("mixtral", Layout(zero_stage=2, micro_batch_size=4)),
    ("mixtral", Layout(zero_stage=0, max_tokens=96, packed=True)),
]
TWO_RANKS = [
    ("qwen3", Layout(zero_stage=0, micro_batch_size=2)),
    ("qwen3", Layout(zero_stage=1, micro_batch_size=1)),
    ("qwen3", Layout(zero_stage=2, micro_batch_size=4)),
    ("qwen3", Layout(zero_stage=3, micro_batch_size=2)),
    ("qwen3", Layout(zero_stage=2, max_tokens=64, packed=True)),
    ("qwen3", Layout(zero_stage=2, max_tokens=90)),
    ("qwen3", Layout(zero_stage=1, micro_batch_size=2, offload=True)),
    ("qwen3", Layout(zero_stage=2, micro_batch_size=3, packed=True, ring=2)),
    ("llama", Layout(zero_stage=3, max_tokens=80, packed=True, checkpointing=True)),
    ("llama", Layout(zero_stage=0, micro_batch_size=4, packed=True, ring=2, checkpointing=True)),
    ("llama", Layout(zero_stage=2, micro_batch_size=1, checkpointing=True)),
    ("gemma2", Layout(zero_stage=1, micro_batch_size=2, packed=True)),
    ("gemma2", Layout(zero_stage=2, micro_batch_size=4, packed=True, ring=2)),
    ("mixtral", Layout(zero_stage=1, micro_batch_size=2, packed=True)),
    ("mixtral", Layout(zero_stage=3, micro_batch_size=2)),
    ("mixtral", Layout(zero_stage=2, micro_batch_size=4, packed=True, ring=2)),
]


@functools.cache
def reference(recipe: Recipe) -> Curve:
    return train(tiny_model(recipe.model_kind, dtype=torch.float64), recipe)


def assert_same(curve: Curve, expected: Curve) -> None:
    for step, (loss, right) in enumerate(zip(curve.losses, expected.losses, strict=True)):
        assert loss == pytest.approx(right, rel=LOSS_TOLERANCE), f"loss of step {step}"
    for step, (norm, right) in enumerate(zip(curve.grad_norms, expected.grad_norms, strict=True)):
        assert norm == pytest.approx(right, rel=GRAD_NORM_TOLERANCE), f"gradient norm of step {step}"
    assert curve.weights.keys() == expected.weights.keys()
    for name, value in curve.weights.items():
        furthest = (value.double() - expected.weights[name]).abs().max()
        assert furthest < WEIGHT_TOLERANCE, f"{name} is off by {furthest:.1e}"


def ids(cells):
    return [f"{kind}-{layout}" for kind, layout in cells]


@pytest.mark.parametrize(("kind", "layout"), ONE_RANK, ids=ids(ONE_RANK))
def test_one_rank(one_rank, kind, layout):
    recipe = Recipe(kind)
    assert_same(one_rank.run(train_in_layout, recipe, layout)[0], reference(recipe))


@pytest.mark.parametrize(("kind", "layout"), TWO_RANKS, ids=ids(TWO_RANKS))
def test_two_ranks(two_ranks, kind, layout):
    recipe = Recipe(kind)
    assert_same(two_ranks.run(train_in_layout, recipe, layout)[0], reference(recipe))
