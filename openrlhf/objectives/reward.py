"""Reward modelling: the chosen answer of a pair is to get the higher value (Bradley-Terry)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from openrlhf.batching import MicroBatch
from openrlhf.objectives.objective import Amount, Objective, Share
from openrlhf.objectives.scorer import Scorer

RewardLoss = Literal["sigmoid", "logexp"]


class RewardObjective(Objective):
    """The weighted mean over a window's pairs of -log sigmoid(r_chosen - r_rejected - margin).

    Args:
        loss_type: `sigmoid`, or `logexp`: log(1 + exp(r_rejected - r_chosen)), which has no margin.
        with_margin: subtract the pair's own margin (its number `margin`, 0 without one).
        center_coef: adds that many times (r_chosen + r_rejected)^2, which keeps rewards around 0 (arXiv 2312.09244).
    """

    metrics = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "longer_is_better_accuracy")
    scores_tokens = False

    def __init__(self, loss_type: RewardLoss = "sigmoid", with_margin: bool = False, center_coef: float = 0.0):
        self._loss_type = loss_type
        self._with_margin = with_margin
        self._center_coef = center_coef

    def weight(self, batch: MicroBatch) -> float:
        return batch.unit_weight_sum

    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        rewards = scorer.sequence_values()
        chosen, rejected = rewards[::2], rewards[1::2]
        of_pairs = self._of_pairs(chosen, rejected, batch) + self._center_coef * (chosen + rejected) ** 2
        of_pairs = of_pairs * scorer.speaks_for_sequences
        weights = torch.tensor(batch.unit_weights, dtype=of_pairs.dtype, device=of_pairs.device)
        return Share((of_pairs * weights).sum() / divisor, _sums(batch, chosen, rejected, of_pairs, scorer))

    def _of_pairs(self, chosen: Tensor, rejected: Tensor, batch: MicroBatch) -> Tensor:
        if self._loss_type == "logexp":
            return softplus(rejected - chosen)
        margin = batch.unit_numbers.get("margin") if self._with_margin else None
        return -logsigmoid(chosen - rejected - (0.0 if margin is None else margin.to(chosen)))


def _sums(
    batch: MicroBatch, chosen: Tensor, rejected: Tensor, of_pairs: Tensor, scorer: Scorer
) -> dict[str, tuple[Amount, Amount]]:
    speaks, count = scorer.speaks_for_sequences, len(chosen) * scorer.speaks_for_sequences
    targets = batch.targets_of_sequences
    num_longer = sum(a > b for a, b in zip(targets[::2], targets[1::2], strict=True))
    values = {
        "accuracy": chosen > rejected,
        "margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
    }
    sums: dict[str, tuple[Amount, Amount]] = {
        name: (value.detach().double().sum() * speaks, count) for name, value in values.items()
    }
    return sums | {
        "loss": (of_pairs.detach().double().sum(), count),
        "longer_is_better_accuracy": (num_longer * speaks, count),
    }
