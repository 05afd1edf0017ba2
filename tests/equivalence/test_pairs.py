"""Pairs in every layout, against a float64 loop: DPO with each kind of model, and reward models."""

from __future__ import annotations

import functools

import pytest

from tests.equivalence.cells import Layout
from tests.equivalence.pair_cells import PairRecipe, train_pairs, train_pairs_in_layout
from tests.equivalence.reference import Curve
from tests.equivalence.test_layouts import LOSS_TOLERANCE, POOLS, assert_same

# DPO's loss holds log-probs of whole answers, about -100: one unit in the last place of a float32 there, times beta, is
# 1.1e-6 of the loss, and a processor with AVX2 alone rounds so.
DPO_LOSS_TOLERANCE = 2e-6  # relative
SMOOTHED = PairRecipe("dpo", "llama", loss="sigmoid_norm", shares_prompts=True)
CELLS = [  # (ranks, recipe, layout)
    (1, PairRecipe("dpo", "llama"), Layout(0, 1)),
    (1, PairRecipe("dpo", "llama"), Layout(2, 4)),
    (1, PairRecipe("dpo", "qwen3"), Layout(1, max_tokens=90, packed=True, checkpointing=True)),
    (1, PairRecipe("dpo", "mixtral"), Layout(3, 2, packed=True)),
    (2, PairRecipe("dpo", "qwen3"), Layout(0, 2)),
    (2, PairRecipe("dpo", "qwen3"), Layout(2, 1, packed=True, ring=2)),
    (2, PairRecipe("dpo", "llama"), Layout(3, max_tokens=60, packed=True, ring=2, checkpointing=True)),
    (2, PairRecipe("dpo", "mixtral"), Layout(2, 1)),
    (2, PairRecipe("dpo", "gemma2"), Layout(3, 2, packed=True)),
    (4, PairRecipe("dpo", "qwen3"), Layout(2, 1, packed=True, ring=2)),
    (1, PairRecipe("dpo", "llama", has_adapters=True), Layout(0, 2, packed=True)),
    (2, PairRecipe("dpo", "llama", has_adapters=True), Layout(2, 1, packed=True, ring=2, checkpointing=True)),
    (2, PairRecipe("dpo", "llama", has_adapters=True), Layout(3, max_tokens=130)),
    (1, PairRecipe("rm", "llama"), Layout(0, 2)),
    (1, PairRecipe("rm", "qwen3"), Layout(2, max_tokens=90, packed=True, checkpointing=True)),
    (1, PairRecipe("rm", "mixtral"), Layout(1, 1)),
    (2, PairRecipe("rm", "llama"), Layout(3, 1)),
    (2, PairRecipe("rm", "qwen3"), Layout(1, 2, packed=True, ring=2)),
    (2, PairRecipe("rm", "mixtral"), Layout(2, 1, packed=True)),
    (4, PairRecipe("rm", "llama"), Layout(3, max_tokens=60, packed=True, ring=2)),
    (1, SMOOTHED, Layout(2, max_tokens=150, packed=True)),
    (2, SMOOTHED, Layout(3, 2, packed=True)),
    (2, PairRecipe("rm", "llama", loss="margin", shares_prompts=True), Layout(1, 2, packed=True, ring=2)),
]


@functools.cache
def expected(recipe: PairRecipe) -> Curve:
    return train_pairs(recipe)


@pytest.mark.parametrize(
    ("ranks", "recipe", "layout"), CELLS, ids=[f"{ranks}ranks-{recipe}-{layout}" for ranks, recipe, layout in CELLS]
)
def test_pairs_in_a_layout(ranks, recipe, layout, request):
    found = request.getfixturevalue(POOLS[ranks]).run(train_pairs_in_layout, recipe, layout)[0]
    assert_same(found, expected(recipe), DPO_LOSS_TOLERANCE if recipe.command == "dpo" else LOSS_TOLERANCE)
