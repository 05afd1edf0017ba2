"""Evaluation: every row once, by the objective of the training, whatever the layout; when it is due; the early stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from openrlhf.batching import StepWindow
from openrlhf.models import Actor
from openrlhf.objectives import Objective, Scorer
from openrlhf.parallel.collectives import sum_over
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.callbacks.callback import Callback
from openrlhf.trainer.metrics import MetricSums

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer

_PREFIX = "eval_"


def evaluate(
    model: Actor,
    windows: Iterable[StepWindow],
    strategy: DeepspeedStrategy,
    objective: Objective,
    with_entropy: bool = False,
) -> dict[str, float]:
    """`eval_loss` and the other metrics over all rows of `windows`; the same on every rank.

    Leaves the model in training mode if it was.
    """
    was_training = model.training
    model.eval()
    sums = MetricSums(objective, strategy.device, with_entropy)
    num_targets = torch.zeros(1, dtype=torch.float64)
    shown = tqdm(windows, desc="evaluation", leave=False, disable=None if strategy.is_rank_0() else True)
    with torch.no_grad():
        for number, window in enumerate(shown, start=1):
            strategy.watchdog.note(f"evaluation, window {number}")
            for micro_batch in window.micro_batches:
                on_device = micro_batch.to(strategy.device)
                scorer = Scorer(model, on_device, strategy.groups, with_entropy=with_entropy)
                sums.add_share(objective.loss(scorer, on_device, 1.0), scorer)
                num_targets += len(micro_batch.target_ids)
    model.train(was_training)
    means = sums.means_over(strategy.groups.loss)
    total = int(sum_over(num_targets.to(strategy.device), strategy.groups.loss))
    metrics = {"loss": means["loss"]} | objective.derived(means) | {"num_target_tokens": total} | means
    return {_PREFIX + name: value for name, value in metrics.items()}


class Evaluating(Callback):
    """Evaluates every `eval_steps` optimizer steps (-1: never), and at the end of the run."""

    def __init__(self, eval_steps: int):
        self._eval_steps = eval_steps

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if self._eval_steps > 0 and trainer.progress.optimizer_step % self._eval_steps == 0:
            trainer.evaluate()

    def on_run_end(self, trainer: Trainer) -> None:
        if trainer.progress.last_eval_step != trainer.progress.optimizer_step:
            trainer.evaluate()


class EarlyStop(Callback):
    """Ends the run after `patience` evaluations in a row without a lower `eval_loss` than the best before them."""

    def __init__(self, patience: int):
        self._patience = patience

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        num_evals = trainer.progress.num_evals_since_best
        if num_evals >= self._patience:
            trainer.request_stop(
                f"{num_evals} evaluations without a new best (--train.early_stop_patience {self._patience}); the best "
                f"was {trainer.progress.best_eval_loss:.4f} at step {trainer.progress.best_eval_step}"
            )
