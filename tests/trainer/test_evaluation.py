"""Evaluation is the sum of -log p over all rows' targets divided by their number, whatever the batches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openrlhf.batching import FixedSize, TokenBudget
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.models import Actor
from openrlhf.objectives import SFTObjective
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.evaluation import EarlyStop, evaluate
from tests.helpers.tiny_models import tiny_model
from tests.trainer.plain_engine import Recipe, make_loader, make_rows
from tests.trainer.test_step import plain_loop


def evaluated(actor: Actor, rows: list, recipe: Recipe, batch_size: int | None = None) -> dict[str, float]:
    """The record of an evaluation on plain torch."""
    windows = make_loader(rows, recipe, batch_size).windows(max_epochs=1)
    return evaluate(actor, windows, DeepspeedStrategy(), SFTObjective())


def test_an_early_stop_without_a_finite_evaluation_is_told():
    reasons: list[str] = []
    trainer: Any = SimpleNamespace(progress=TrainingProgress().after_evaluation(math.nan), request_stop=reasons.append)
    EarlyStop(1).on_evaluate(trainer, {})
    assert "none had a finite loss" in reasons[0]


RECIPES = {
    "padded": Recipe(layout=FixedSize(2)),
    "one by one": Recipe(layout=FixedSize(1)),
    "packed": Recipe(layout=TokenBudget(20, packed=True), packed=True),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_row_once_and_every_target_alike(name):
    recipe, rows = RECIPES[name], make_rows((9, 3, 14, 5, 4, 4, 11))
    actor = Actor(tiny_model("llama", torch.float64), packing_samples=recipe.packed)
    result = evaluated(actor, rows, recipe, batch_size=3)
    assert result["eval_num_target_tokens"] == sum(int(mask[:-1].sum()) for _, _, mask in rows)
    assert result["eval_loss"] == pytest.approx(plain_loop(rows, "token")[0], rel=1e-12)
    assert result["eval_perplexity"] == pytest.approx(math.exp(result["eval_loss"]))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_goes_on_as_it_was(training):
    actor = Actor(tiny_model("llama")).train(training)
    evaluated(actor, make_rows(), Recipe())
    assert actor.training == training


def test_dropout_is_off():
    recipe = Recipe(layout=FixedSize(1))
    actor = Actor(tiny_model("gpt2", resid_pdrop=0.5)).train()
    losses = {evaluated(actor, make_rows(), recipe)["eval_loss"] for _ in range(3)}
    assert len(losses) == 1
