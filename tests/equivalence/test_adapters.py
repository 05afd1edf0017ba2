"""Every kind of adapter, and frozen weights, in the layouts, against plain PEFT in a float64 loop."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.equivalence.adapter_cells import AdapterRecipe, resume_in_layout, train_in_layout, train_plainly
from tests.equivalence.cells import Layout
from tests.equivalence.reference import Curve
from tests.equivalence.test_layouts import POOLS, assert_same


def by_one_name(name: str, model_kind: str, **settings: object) -> AdapterRecipe:
    """Of settings that PEFT has under the same names."""
    return AdapterRecipe(name, model_kind, settings, settings)


RSLORA = by_one_name("rslora", "llama", use_rslora=True)
DORA = by_one_name("dora", "qwen3", use_dora=True)
HEAD_AND_EMBEDDINGS = by_one_name("modules-to-save", "qwen3", modules_to_save=("embed_tokens", "lm_head"))
HEAD = by_one_name("head-to-save", "llama", modules_to_save=("lm_head",))
EMBEDDINGS = by_one_name("embeddings", "qwen3", target_modules=("embed_tokens", "q_proj"))
EXPERTS = by_one_name(
    "experts", "mixtral", target_modules=("q_proj",), target_parameters=("experts.gate_up_proj", "experts.down_proj")
)
LAYERS = by_one_name("one-layer", "llama", target_modules=("q_proj", "down_proj"), layers_to_transform=(1,))
FROZEN = AdapterRecipe("frozen", "qwen3", trainable=r"layers\.1\.|norm")
TIED = AdapterRecipe("frozen-but-tied", "qwen3", trainable="lm_head|embed_tokens")

CELLS = [  # (ranks, recipe, layout)
    (1, RSLORA, Layout(2, 2, packed=True)),
    (2, RSLORA, Layout(3, max_tokens=80, packed=True)),
    (1, DORA, Layout(0, 2)),
    (1, DORA, Layout(2, 4, packed=True, checkpointing=True)),
    (2, DORA, Layout(2, 2, packed=True, ring=2)),
    (1, HEAD_AND_EMBEDDINGS, Layout(1, 4, packed=True)),
    (2, HEAD_AND_EMBEDDINGS, Layout(3, 2)),
    (2, HEAD_AND_EMBEDDINGS, Layout(2, max_tokens=64, packed=True, ring=2)),
    (1, HEAD, Layout(0, 2)),
    (2, HEAD, Layout(3, 2, packed=True, checkpointing=True)),
    (1, EMBEDDINGS, Layout(2, 2)),
    (2, EMBEDDINGS, Layout(3, 3, packed=True)),
    (1, EXPERTS, Layout(2, 4, packed=True)),
    (2, EXPERTS, Layout(2, 2)),
    (2, EXPERTS, Layout(3, 2)),
    (1, LAYERS, Layout(1, 2)),
    (2, LAYERS, Layout(3, 2, packed=True)),
    (1, FROZEN, Layout(0, 2, packed=True, checkpointing=True)),
    (2, FROZEN, Layout(2, 2)),
    (2, FROZEN, Layout(3, max_tokens=64, packed=True)),
    (1, TIED, Layout(2, 2)),
    (2, TIED, Layout(3, 2)),
]

RESUMED = [
    (1, RSLORA, Layout(2, 2, packed=True)),
    (1, DORA, Layout(1, 4)),
    (2, HEAD_AND_EMBEDDINGS, Layout(3, 2)),
    (1, HEAD, Layout(0, 2)),
    (1, EMBEDDINGS, Layout(2, 4, packed=True)),
    (2, EXPERTS, Layout(2, 2)),
    (1, LAYERS, Layout(2, 4)),
    (1, TIED, Layout(2, 2)),
]


@functools.cache
def expected(recipe: AdapterRecipe) -> Curve:
    return train_plainly(recipe)


@pytest.mark.parametrize(
    ("ranks", "recipe", "layout"),
    CELLS,
    ids=[f"{ranks}ranks-{recipe.name}-{layout}" for ranks, recipe, layout in CELLS],
)
def test_what_is_trained_beside_frozen_weights(ranks, recipe, layout, request):
    found = request.getfixturevalue(POOLS[ranks]).run(train_in_layout, recipe, layout)[0]
    assert_same(found, expected(recipe))


@pytest.mark.parametrize(("ranks", "recipe", "layout"), RESUMED, ids=[recipe.name for _, recipe, _ in RESUMED])
def test_training_goes_on_from_a_checkpoint_to_the_bit(ranks, recipe, layout, request, tmp_path):
    pool = request.getfixturevalue(POOLS[ranks])
    whole = pool.run(train_in_layout, recipe, layout)[0]
    halves = pool.run(resume_in_layout, recipe, layout, str(tmp_path))[0]
    assert halves.losses == whole.losses
    assert halves.grad_norms == whole.grad_norms
    assert halves.weights.keys() == whole.weights.keys()
    for name, weight in whole.weights.items():
        assert torch.equal(halves.weights[name], weight), name
