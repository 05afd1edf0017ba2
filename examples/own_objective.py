"""An objective of one's own: focal loss (arXiv 1708.02002), in which tokens that the model knows already count less.

    deepspeed examples/own_objective.py FLAGS        # the flags of openrlhf.cli.train_sft
    python -m openrlhf.cli.train_sft --train.loss examples.own_objective:FocalObjective FLAGS

An objective says what is divided by what. Packing, rings, ZeRO, resuming, evaluation and metrics come by themselves.
"""

from __future__ import annotations

from openrlhf.batching import MicroBatch
from openrlhf.cli.entry import run_command
from openrlhf.cli.train_sft import main
from openrlhf.objectives import Objective, Scorer, Share, register_objective

GAMMA = 2.0


@register_objective("focal")
class FocalObjective(Objective):
    """The weighted mean of -(1 - p)^2 log p over the target tokens of a step."""

    metrics = ("loss",)

    def weight(self, batch: MicroBatch) -> float:
        return batch.target_weight_sum

    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        log_probs = scorer.log_probs()  # (N,) of this rank's target tokens, with gradients
        focal = -((1 - log_probs.exp()) ** GAMMA) * log_probs
        loss = (focal * batch.target_weights).sum() / divisor  # never by a number of this micro-batch's own
        return Share(loss, {"loss": (focal.detach().double().sum(), len(focal))})


if __name__ == "__main__":
    run_command(lambda argv: main(["--train.loss", "focal", *argv]))
