"""Supervised fine-tuning: every target token's -log p, and a variant of it that weighs tokens by their probability."""

from __future__ import annotations

import math

from torch import Tensor

from openrlhf.batching import MicroBatch
from openrlhf.objectives.objective import Objective, Share, register_objective
from openrlhf.objectives.scorer import Scorer


@register_objective("nll")
class SFTObjective(Objective):
    """The weighted mean of -log p over the window's target tokens.

    With `--train.loss_reduction token` a token's weight is 1 (times the weights of its row and its turn), with `sample`
    the weights of a row's tokens add up to 1 (times the row's weight). The metric `loss` is the plain mean of -log p.
    """

    def weight(self, batch: MicroBatch) -> float:
        return batch.target_weight_sum

    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        log_probs, weighted_sum = scorer.weighted_log_probs(batch.target_weights / divisor)
        return Share(-weighted_sum, {"loss": (-log_probs.double().sum(), len(log_probs))})

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        return {"perplexity": _perplexity(means["loss"])}


@register_objective("dft")
class DFTObjective(SFTObjective):
    """Dynamic fine-tuning (arXiv 2508.05629, equation 9): each token's -log p, times its probability as a constant.

    The gradient of -log p grows as 1 / p; the factor p takes that away. The metric `loss` is what is minimised, the
    mean of -p log p, and `nll` the plain mean of -log p.
    """

    metrics: tuple[str, ...] = ("loss", "nll")

    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        weights = batch.target_weights / divisor

        def times_probability(log_probs: Tensor) -> Tensor:
            return weights * log_probs.exp().to(weights.dtype)

        log_probs, weighted_sum = scorer.weighted_log_probs(times_probability)
        exact = log_probs.double()
        return Share(
            -weighted_sum,
            {"loss": (-(exact.exp() * exact).sum(), len(exact)), "nll": (-exact.sum(), len(exact))},
        )

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        return {"perplexity": _perplexity(means["nll"])}


def _perplexity(mean_nll: float) -> float:
    return math.exp(mean_nll) if mean_nll < 700 else math.inf
