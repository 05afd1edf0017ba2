"""Evaluation is the sum of -log p over all rows' targets divided by their number, whatever the batches."""

from __future__ import annotations

import pytest
import torch

from openrlhf.batching import FixedSize, TokenBudget
from openrlhf.models import Actor
from openrlhf.strategy.strategy import DeepspeedStrategy
from openrlhf.trainer.evaluation import evaluate
from tests.helpers.tiny_models import tiny_model
from tests.trainer.plain_engine import Recipe, make_loader, make_rows
from tests.trainer.test_window_step import plain_loop

RECIPES = {
    "padded": Recipe(layout=FixedSize(2)),
    "one by one": Recipe(layout=FixedSize(1)),
    "packed": Recipe(layout=TokenBudget(20, packed=True), packed=True),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_row_once_and_every_target_alike(name):
    recipe, rows = RECIPES[name], make_rows((9, 3, 14, 5, 4, 4, 11))
    actor = Actor(tiny_model("llama", torch.float64), packing_samples=recipe.packed)
    result = evaluate(actor, make_loader(rows, recipe, batch_size=3), DeepspeedStrategy(), pad_token_id=0)
    assert result.num_target_tokens == sum(int(mask[:-1].sum()) for _, _, mask in rows)
    assert result.loss == pytest.approx(plain_loop(rows, "token")[0], rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_goes_on_as_it_was(training):
    actor = Actor(tiny_model("llama")).train(training)
    evaluate(actor, make_loader(make_rows(), Recipe()), DeepspeedStrategy(), pad_token_id=0)
    assert actor.training == training


def test_dropout_is_off():
    recipe = Recipe(layout=FixedSize(1))
    actor = Actor(tiny_model("gpt2", resid_pdrop=0.5)).train()
    losses = {evaluate(actor, make_loader(make_rows(), recipe), DeepspeedStrategy(), 0).loss for _ in range(3)}
    assert len(losses) == 1
