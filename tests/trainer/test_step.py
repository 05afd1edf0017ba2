"""The loss and the gradient of a window, however it is cut, are those of a plain float64 loop over its samples."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from openrlhf.batching import FixedSize, TokenBudget
from openrlhf.objectives import AuxLossSettings
from openrlhf.trainer.step import WindowStep
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close
from tests.trainer.plain_engine import Recipe, make_rows, run_window

LAYOUTS = {
    "one by one": Recipe(layout=FixedSize(1)),
    "all at once": Recipe(layout=FixedSize(9)),
    "token budget": Recipe(layout=TokenBudget(20, packed=False)),
    "packed": Recipe(layout=TokenBudget(20, packed=True), packed=True),
    "mean of samples": Recipe(loss_reduction="sample"),
}


def plain_loop(rows, loss_reduction: str):
    """(sum of -log p / number of targets, gradients of the mean that is asked for)"""
    model = tiny_model("llama", torch.float64)
    nll_of_rows = []
    for ids, _, mask in rows:
        log_probs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        nll_of_rows.append(-torch.stack([log_probs[t, ids[t + 1]] for t in range(len(ids) - 1) if mask[t]]))
    by_token = torch.cat(nll_of_rows).mean()
    objective = by_token if loss_reduction == "token" else torch.stack([nll.mean() for nll in nll_of_rows]).mean()
    objective.backward()
    return by_token.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_equals_a_plain_loop(layout):
    recipe, rows = LAYOUTS[layout], make_rows()
    loss, gradients = plain_loop(rows, recipe.loss_reduction)
    result, found = run_window(rows, recipe)
    assert result.loss == pytest.approx(loss, rel=1e-12)
    assert result.counts.num_units_global == len(rows)
    for name, gradient in gradients.items():
        assert_close(found[name], gradient, 1e-6, f"gradient of {name}")  # a target's weight is float32


def test_the_aux_loss_of_equal_micro_batches_is_that_of_one():
    recipe = Recipe("mixtral", torch.float32, FixedSize(1), aux_loss=AuxLossSettings(coef=0.1))
    row = make_rows((9,))
    assert run_window(row * 3, recipe)[0].metrics["aux_loss"] == pytest.approx(
        run_window(row, recipe)[0].metrics["aux_loss"], rel=1e-6
    )


def test_a_micro_batchs_aux_loss_weighs_as_much_as_its_tokens():
    recipe = Recipe("mixtral", torch.float32, FixedSize(1), aux_loss=AuxLossSettings(coef=0.1))
    short, long = make_rows((3, 12))
    alone = [run_window([row], recipe)[0].metrics["aux_loss"] for row in (short, long)]
    expected = (3 * alone[0] + 12 * alone[1]) / 15
    assert run_window([short, long], recipe)[0].metrics["aux_loss"] == pytest.approx(expected, rel=1e-6)


def test_an_aux_loss_of_no_tokens_weighs_nothing():
    """Every unit of the window was left out, since it found no room."""
    step, counts = SimpleNamespace(_aux_loss=AuxLossSettings(0.1)), SimpleNamespace(num_tokens_global=0)
    assert WindowStep._aux_weight(step, SimpleNamespace(num_tokens=0), 0, counts) == 0.0


def test_the_aux_losss_gradient_grows_with_its_coefficient():
    def router_gradient(coef: float) -> torch.Tensor:
        recipe = Recipe("mixtral", torch.float32, aux_loss=AuxLossSettings(coef))
        gradients = run_window(make_rows(), recipe)[1]
        return next(gradient for name, gradient in gradients.items() if "gate" in name)

    without, once, twice = (router_gradient(coef) for coef in (0.0, 0.5, 1.0))
    assert (once - without).abs().max() > 1e-4
    torch.testing.assert_close(twice - without, 2 * (once - without), atol=1e-6, rtol=1e-4)


def test_dropout_is_a_function_of_the_step_and_not_of_what_was_drawn_before():
    recipe = Recipe("gpt2", torch.float32, FixedSize(1), config=(("resid_pdrop", 0.5),))
    losses = []
    for optimizer_step, draws_before in ((3, 0), (3, 7), (4, 0)):
        torch.rand(draws_before)
        losses.append(run_window(make_rows(), recipe, optimizer_step)[0].loss)
    assert losses[0] == losses[1]
    assert losses[2] != losses[0]


def test_micro_steps_of_a_window_drop_different_things():
    recipe = Recipe("gpt2", torch.float32, FixedSize(1), config=(("resid_pdrop", 0.5),))
    row = make_rows((9,))
    assert run_window(row * 2, recipe)[0].loss != run_window(row, recipe)[0].loss
