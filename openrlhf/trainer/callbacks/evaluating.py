"""Evaluation when it is due, and the early stop that looks at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer


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
