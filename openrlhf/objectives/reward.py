"""Reward modelling: the chosen answer of a pair is to get the higher value (Bradley-Terry)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from openrlhf.batching import MicroBatch
from openrlhf.objectives.objective import Share
from openrlhf.objectives.pairs import PairObjective, Sums, beside_the_pass
from openrlhf.objectives.scorer import Scorer

RewardLoss = Literal["sigmoid", "logexp"]

_NUM_BINS = 10  # of confidences, all between 0.5 and 1
_GAPS = tuple(f"gap_of_bin_{number}" for number in range(_NUM_BINS))


class RewardObjective(PairObjective):
    """The weighted mean over a window's pairs of -log sigmoid(r_chosen - r_rejected - margin).

    Args:
        loss_type: `sigmoid`, or `logexp`: log(1 + exp(r_rejected - r_chosen)), which has no margin.
        with_margin: subtract the pair's own margin (its number `margin`, 0 without one).
        center_coef: adds that many times (r_chosen + r_rejected)^2, which keeps rewards around 0 (arXiv 2312.09244).

    Evaluations have, beside what `PairObjective` says: `calibration_error`, how far the probabilities
    sigmoid(r_chosen - r_rejected) are from the accuracy of pairs of like probability (the expected calibration error of
    arXiv 1706.04599, in 10 bins); `reward_mean` and `reward_std` of all answers. Two equal rewards are no success.
    """

    metrics = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
    accuracy = "accuracy"
    scores_tokens = False

    def __init__(
        self,
        loss_type: RewardLoss = "sigmoid",
        with_margin: bool = False,
        center_coef: float = 0.0,
    ):
        self._loss_type = loss_type
        self._with_margin = with_margin
        self._center_coef = center_coef
        super().__init__(("reward_square", *_GAPS))

    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        rewards, speaks = scorer.sequence_values(), scorer.speaks_for_sequences
        chosen, rejected = rewards[::2], rewards[1::2]
        of_pairs = self._of_pairs(chosen, rejected, batch) + self._center_coef * (chosen + rejected) ** 2
        weighted = of_pairs * beside_the_pass(batch.unit_weights, batch).to(of_pairs)
        sums = self._sums(batch, chosen.detach().double(), rejected.detach().double())
        sums["loss"] = weighted.detach().double().sum(), batch.unit_weight_sum
        counted = {name: (total * speaks, count * speaks) for name, (total, count) in sums.items()}
        return Share(weighted.sum() * speaks / divisor, counted)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        mean = (means["chosen_reward"] + means["rejected_reward"]) / 2
        return super().derived(means) | {
            "calibration_error": sum(abs(means[name]) for name in _GAPS),
            "reward_mean": mean,
            "reward_std": math.sqrt(max(means["reward_square"] - mean**2, 0.0)),
        }

    def _of_pairs(self, chosen: Tensor, rejected: Tensor, batch: MicroBatch) -> Tensor:
        if self._loss_type == "logexp":
            return softplus(rejected - chosen)
        margin = batch.unit_numbers.get("margin") if self._with_margin else None
        return -logsigmoid(chosen - rejected - (0.0 if margin is None else margin.to(chosen)))

    def _sums(self, batch: MicroBatch, chosen: Tensor, rejected: Tensor) -> Sums:
        """By name, a sum over pairs and the count that it is divided by; values are (U,) float64."""
        difference = chosen - rejected
        values: dict[str, Tensor | float] = {
            "accuracy": (difference > 0).sum(),
            "margin": difference.sum(),
            "chosen_reward": chosen.sum(),
            "rejected_reward": rejected.sum(),
            "reward_square": (chosen**2 + rejected**2).sum() / 2,
            **dict(zip(_GAPS, _gaps(difference), strict=True)),
        }
        sums: Sums = {name: (value, len(difference)) for name, value in values.items()}
        return sums | self.sums_of_parts(batch, difference)


def _gaps(difference: Tensor) -> Tensor:
    """(bins,) in each bin of confidences the successes, less those that its confidences promise; a tie is half one.

    A difference that is no number has no bin: it spoils the first one, and whoever looks at the loss names its pair.
    """
    confidence, success = difference.abs().sigmoid(), (difference.sign() + 1) / 2
    place = ((confidence.nan_to_num(0.5) - 0.5) * (2 * _NUM_BINS)).long().clamp(0, _NUM_BINS - 1)
    return difference.new_zeros(_NUM_BINS).index_add(0, place, success - confidence)
