"""The objectives of fine-tuning against formulas in float64, gradients included, and against the public SFTLoss."""

from __future__ import annotations

import math

import pytest
import torch

from openrlhf.batching import FixedSize, TokenBudget
from openrlhf.errors import UserError
from openrlhf.models import SFTLoss
from openrlhf.objectives import DFTObjective, SFTObjective, objective_named, register_objective
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close
from tests.trainer.plain_engine import Recipe, make_rows, run_window

LAYOUTS = {
    "one by one": dict(layout=FixedSize(1)),
    "all at once": dict(layout=FixedSize(9)),
    "packed": dict(layout=TokenBudget(20, packed=True), packed=True),
}


def log_probs_of_targets(model, rows):
    """(log-probs of all targets, weights of all targets), row by row."""
    log_probs, weights = [], []
    for ids, _, mask in rows:
        of_row = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        places = [t for t in range(len(ids) - 1) if mask[t]]
        log_probs += [of_row[t, ids[t + 1]] for t in places]
        weights += [float(mask[t]) for t in places]
    return torch.stack(log_probs), torch.tensor(weights, dtype=torch.float64)


def weighted(rows):
    return [(ids, attention, mask * (1.0 + 0.5 * (torch.arange(len(ids)) % 3))) for ids, attention, mask in rows]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dft_weighs_each_token_by_its_probability(layout):
    rows = make_rows()
    model = tiny_model("llama", torch.float64)
    log_probs, _ = log_probs_of_targets(model, rows)
    loss = -(log_probs.exp().detach() * log_probs).mean()
    loss.backward()
    result, gradients = run_window(rows, Recipe(objective=DFTObjective, **LAYOUTS[layout]))
    assert result.loss == pytest.approx(loss.item(), rel=1e-12)
    assert result.metrics["nll"] == pytest.approx(-log_probs.mean().item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        assert_close(gradients[name], parameter.grad, 1e-6, f"gradient of {name}")  # a target's weight is float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_count_in_the_divisor(layout):
    rows = weighted(make_rows())
    model = tiny_model("llama", torch.float64)
    log_probs, weights = log_probs_of_targets(model, rows)
    (-(weights * log_probs).sum() / weights.sum()).backward()
    result, gradients = run_window(rows, Recipe(**LAYOUTS[layout]))
    assert result.loss == pytest.approx(-log_probs.mean().item(), rel=1e-12), "the metric is the plain mean"
    for name, parameter in model.named_parameters():
        assert_close(gradients[name], parameter.grad, 1e-6, f"gradient of {name}")


def test_the_public_loss_is_the_trainers():
    rows = make_rows((9, 9))
    ids, _, masks = (torch.stack(parts) for parts in zip(*rows, strict=True))
    logits = tiny_model("llama", torch.float64)(input_ids=ids).logits[:, :-1]
    log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert SFTLoss()(log_probs, masks[:, :-1]).item() == pytest.approx(run_window(rows)[0].loss, rel=1e-12)


def test_token_accuracy_is_the_share_of_targets_that_were_the_likeliest_token():
    model, (start, *others) = tiny_model("llama", torch.float64), make_rows()
    ids = start[0][:3]
    while len(ids) < 9:  # a row of which the model would say each next token itself
        ids = torch.cat([ids, model(input_ids=ids[None]).logits[0, -1:].argmax(-1)])
    greedy = (ids, torch.ones_like(ids), torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0]))
    num_others = sum(int(mask.sum()) for _, _, mask in others)
    assert run_window(others)[0].metrics["token_accuracy"] == 0.0
    assert run_window([greedy])[0].metrics["token_accuracy"] == 1.0
    assert run_window([greedy, *others])[0].metrics["token_accuracy"] == pytest.approx(6 / (6 + num_others))


def test_perplexity_is_of_the_mean_nll():
    assert SFTObjective().derived({"loss": 2.0}) == {"perplexity": math.exp(2.0)}
    assert DFTObjective().derived({"loss": 0.1, "nll": 2.0}) == {"perplexity": math.exp(2.0)}


def test_objectives_have_names():
    assert type(objective_named("nll")) is SFTObjective
    assert type(objective_named("dft")) is DFTObjective
    assert type(objective_named("openrlhf.objectives.sft:DFTObjective")) is DFTObjective

    @register_objective("mine")
    class Mine(SFTObjective):
        pass

    assert type(objective_named("mine")) is Mine


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nil", "--train.loss nil is none of dft, .*nll. Give one of them, or module:Name"),
        ("no.such.module:Name", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        (
            "openrlhf.objectives.sft:Nothing",
            "AttributeError: module 'openrlhf.objectives.sft' has no",
        ),
        ("openrlhf.models:Actor", "is no Objective: make it a subclass"),
    ],
)
def test_an_objective_that_is_none_is_refused_in_words(name, message):
    with pytest.raises(UserError, match=message):
        objective_named(name)
