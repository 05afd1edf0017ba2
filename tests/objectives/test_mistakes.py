"""Mistakes in an objective of the user's own are told in words, or do no harm."""

from __future__ import annotations

import pytest
import torch

from openrlhf.batching import FixedSize
from openrlhf.errors import UserError
from openrlhf.objectives import SFTObjective, Share, objective_named
from tests.trainer.plain_engine import Recipe, make_rows, run_window


class NothingOfLongRows(SFTObjective):
    """A constant loss for micro-batches whose row is long."""

    def loss(self, scorer, batch, divisor):
        share = super().loss(scorer, batch, divisor)
        return share if batch.num_tokens < 10 else Share(torch.zeros(()), share.sums)


class PositionalNames(SFTObjective):
    def loss(self, s, b, d):
        return super().loss(s, b, d)


class NeverAsks(SFTObjective):
    def loss(self, scorer, batch, divisor):
        return Share(torch.zeros(()), {"loss": (0.0, 1)})


class AsksTwice(SFTObjective):
    def loss(self, scorer, batch, divisor):
        scorer.log_probs()
        return super().loss(scorer, batch, divisor)


class LossOfEachToken(SFTObjective):
    def loss(self, scorer, batch, divisor):
        log_probs = scorer.log_probs()
        return Share(-log_probs, {"loss": (-log_probs.sum(), 1)})


class UndeclaredSum(SFTObjective):
    def loss(self, scorer, batch, divisor):
        share = super().loss(scorer, batch, divisor)
        return Share(share.loss, {**share.sums, "mine": (1.0, 1.0)})


class MetricOfTheRecord(SFTObjective):
    metrics = ("loss", "lr")


class NoLoss(SFTObjective):
    metrics = ("nll",)


class WeighsNothing(SFTObjective):
    def weight(self, batch):
        return 0.0


class WeighsNan(SFTObjective):
    def weight(self, batch):
        return float("nan")


def test_a_constant_loss_of_some_micro_batches_trains_the_others():
    one_by_one, rows = dict(layout=FixedSize(1)), make_rows((9, 14))
    found = run_window(rows, Recipe(objective=NothingOfLongRows, **one_by_one))[1]
    whole, alone = run_window(rows, Recipe(**one_by_one)), run_window(rows[:1], Recipe(**one_by_one))
    share = alone[0].counts.num_target_tokens_global / whole[0].counts.num_target_tokens_global
    for name, gradient in alone[1].items():
        torch.testing.assert_close(found[name], gradient * share, rtol=1e-5, atol=1e-7)


def test_the_names_of_an_objectives_arguments_are_its_own():
    assert run_window(make_rows(), Recipe(objective=PositionalNames))[0].loss == run_window(make_rows())[0].loss


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (NeverAsks, "has not asked its scorer for log-probs"),
        (AsksTwice, "has asked its scorer for log-probs twice"),
        (LossOfEachToken, r"LossOfEachToken has given a loss of shape \(\d+,\): a share's loss is a scalar tensor"),
        (UndeclaredSum, "has declared the metrics loss, but its Share has sums of loss, mine"),
        (MetricOfTheRecord, "it has lr, which every record has"),
        (NoLoss, "it lacks loss"),
        (WeighsNothing, "the objective's weight of a step with 23 targets is 0.0: it must be above 0"),
        (WeighsNan, "the objective's weight of a step with 23 targets is nan"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_mistake_is_told(objective, message):
    with pytest.raises(UserError, match=message):
        run_window(make_rows(), Recipe(objective=objective))


def test_an_objective_without_its_methods_cannot_be_made():
    with pytest.raises(UserError, match="cannot be made: TypeError: Can't instantiate abstract class"):
        objective_named("openrlhf.objectives:Objective")
