"""What an optimizer step computes does not depend on how it is laid out: every layout against a float64 loop."""

from __future__ import annotations

import functools
from itertools import product

import pytest
import torch

from tests.equivalence import matrix
from tests.equivalence.cells import train_in_layout
from tests.equivalence.matrix import LAYOUTS, MORE_LAYOUTS, SAMPLE_MEAN, Cell
from tests.equivalence.reference import Curve, Recipe, train
from tests.helpers.slow import slow
from tests.helpers.tiny_models import tiny_model

LOSS_TOLERANCE = 1e-6  # relative
GRAD_NORM_TOLERANCE = 1e-5  # relative
WEIGHT_TOLERANCE = 1e-5  # absolute; weights are about 0.1
BF16_LOSS_TOLERANCE = 2e-3  # relative
BF16_GRAD_NORM_TOLERANCE = 3e-3  # relative; a norm adds up rounding errors of one sign
BF16_WEIGHT_TOLERANCE = 2e-3  # of a whole tensor, relative; a single weight may be rounded the other way

POOLS = {1: "one_rank", 2: "two_ranks", 4: "four_ranks"}


@functools.cache
def reference(recipe: Recipe) -> Curve:
    model = tiny_model(recipe.model_kind, dtype=torch.float64)
    if recipe.has_bf16_weights:
        model = tiny_model(recipe.model_kind, dtype=torch.bfloat16).double()
    return train(model, recipe)


def run(cell: Cell, request: pytest.FixtureRequest) -> Curve:
    return request.getfixturevalue(POOLS[cell.ranks]).run(train_in_layout, cell.recipe, cell.layout)[0]


def assert_same(curve: Curve, expected: Curve, loss_tolerance: float = LOSS_TOLERANCE) -> None:
    assert_near(curve.losses, expected.losses, loss_tolerance, "loss")
    assert_near(curve.aux_losses, expected.aux_losses, LOSS_TOLERANCE, "auxiliary loss")
    assert_near(curve.grad_norms, expected.grad_norms, GRAD_NORM_TOLERANCE, "gradient norm")
    assert curve.weights.keys() == expected.weights.keys()
    for name, value in curve.weights.items():
        furthest = (value.double() - expected.weights[name]).abs().max()
        assert furthest < WEIGHT_TOLERANCE, f"{name} is off by {furthest:.1e}"


def assert_same_in_bf16(curve: Curve, expected: Curve) -> None:
    assert_near(curve.losses, expected.losses, BF16_LOSS_TOLERANCE, "loss")
    assert_near(curve.grad_norms, expected.grad_norms, BF16_GRAD_NORM_TOLERANCE, "gradient norm")
    for name, value in curve.weights.items():
        distance = (value.double() - expected.weights[name]).norm() / expected.weights[name].norm()
        assert distance < BF16_WEIGHT_TOLERANCE, f"{name} is off by {distance:.1e}"


def assert_near(found: list[float], expected: list[float], tolerance: float, what: str) -> None:
    for step, (value, right) in enumerate(zip(found, expected, strict=True)):
        assert value == pytest.approx(right, rel=tolerance), f"{what} of step {step}"


@pytest.mark.parametrize("cell", [*LAYOUTS, *slow(MORE_LAYOUTS)], ids=str)
def test_layout(cell, request):
    assert_same(run(cell, request), reference(cell.recipe))


@pytest.mark.parametrize("cell", SAMPLE_MEAN, ids=str)
def test_mean_over_samples(cell, request):
    assert_same(run(cell, request), reference(cell.recipe))


@pytest.mark.parametrize("cell", [*matrix.OBJECTIVES, *slow(matrix.MORE_OBJECTIVES)], ids=str)
def test_other_objectives_and_weights(cell, request):
    assert_same(run(cell, request), reference(cell.recipe))


@pytest.mark.parametrize("cell", [*matrix.AUX_LOSS, *slow(matrix.MORE_AUX_LOSS)], ids=str)
def test_load_balancing_loss(cell, request):
    assert_same(run(cell, request), reference(cell.recipe))


@pytest.mark.parametrize("cell", [*matrix.BF16, *slow(matrix.MORE_BF16)], ids=str)
def test_bf16(cell, request):
    assert_same_in_bf16(run(cell, request), reference(cell.recipe))


def test_cells_cover_the_matrix():
    assert len(LAYOUTS) + len(MORE_LAYOUTS) >= 40
    assert {cell.recipe.num_steps for cell in (*LAYOUTS, *MORE_LAYOUTS)} == {20}
    assert {cell.layout.dtype for cell in (*LAYOUTS, *MORE_LAYOUTS)} == {"fp32"}
    assert {cell.layout.checkpointing for cell in LAYOUTS} == {True, False}
    assert {cell.layout.micro_batch_size for cell in LAYOUTS} >= {1, 2, 4, 8}
    rings_of_packs = [
        pair for pair in product(matrix.RINGS, matrix.KINDS) if pair not in ((2, "padded"), (4, "padded"))
    ]
    assert {(c.ranks, c.layout.zero_stage) for c in LAYOUTS} == set(product(matrix.RANKS, matrix.ZERO_STAGES))
    assert {(c.layout.ring, c.kind) for c in LAYOUTS} == set(rings_of_packs)
    assert {(c.recipe.model_kind, c.kind) for c in LAYOUTS} == set(product(matrix.MODELS, matrix.KINDS))
