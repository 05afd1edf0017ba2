"""Evaluation: every row once, by the objective of the training, whatever the layout; when it is due; the early stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from openrlhf.batching import MicroBatch, StepWindow
from openrlhf.engine.abandoned_step import throw_away_gradients
from openrlhf.models import PreparedModel
from openrlhf.objectives import NOTHING_OF_THE_WINDOW, Objective, Scorer, WindowScores
from openrlhf.parallel.collectives import sum_over
from openrlhf.parallel.groups import ProcessGroups
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.callbacks.callback import Callback
from openrlhf.trainer.callbacks.epochs import ends_epoch
from openrlhf.trainer.memory import MemoryBudget
from openrlhf.trainer.metrics import MetricSums
from openrlhf.trainer.shortage import compute_together
from openrlhf.trainer.window_scores import ScorerOf, window_scores

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer

_PREFIX = "eval_"


def evaluate(
    model: PreparedModel,
    windows: Iterable[StepWindow],
    strategy: DeepspeedStrategy,
    objective: Objective,
    with_entropy: bool = False,
    memory: MemoryBudget | None = None,
) -> dict[str, float]:
    """`eval_loss` and the other metrics over all rows of `windows`; the same on every rank.

    Leaves the model in training mode if it was.

    Args: memory: cuts windows where memory runs out; None: an OutOfMemory is raised.
    """
    was_training = model.training
    model.eval()
    sums = MetricSums(objective, strategy.device, with_entropy, is_evaluation=True)
    num_targets = torch.zeros(1, dtype=torch.float64)
    is_zero_3 = strategy.ds.zero_stage == 3

    def give_back() -> None:
        if model.engine is not None:
            throw_away_gradients(model.engine)  # there are none; under ZeRO-3 a broken pass holds weights
        objective.throw_away()

    def add(window: StepWindow) -> None:
        divisor, of_window = _of_window(objective, window, strategy.groups, scorer_of, give_back, is_zero_3)
        before = sums.pairs.clone(), num_targets.clone()

        def compute(number: int, micro_batch: MicroBatch) -> None:
            scorer = scorer_of(micro_batch, number, of_window[number])
            sums.add_share(objective.loss(scorer, scorer.batch, divisor), scorer)
            num_targets.add_(len(micro_batch.target_ids))

        def take_back() -> None:
            give_back()
            for total, at_first in zip((sums.pairs, num_targets), before, strict=True):
                total.copy_(at_first)

        compute_together(window, compute, strategy.groups, lambda: "evaluation", take_back, is_zero_3)

    def scorer_of(micro_batch: MicroBatch, number: int, of_window: WindowScores) -> Scorer:
        on_device = micro_batch.to(strategy.device)
        return Scorer(model, on_device, strategy.groups, with_entropy=with_entropy, window=of_window)

    shown = tqdm(windows, desc="evaluation", leave=False, disable=None if strategy.is_rank_0() else True)
    with torch.no_grad():
        for window_number, window in enumerate(shown, start=1):
            strategy.watchdog.note(f"evaluation, window {window_number}")
            memory.compute(window, add) if memory else add(window)
    model.train(was_training)
    means = sums.means_over(strategy.groups.loss)
    total = int(sum_over(num_targets.to(strategy.device), strategy.groups.loss))
    metrics = {"loss": means["loss"]} | objective.derived(means) | {"num_target_tokens": total} | means
    return {_PREFIX + name: value for name, value in metrics.items() if name not in objective.eval_sums}


def _of_window(
    objective: Objective,
    window: StepWindow,
    groups: ProcessGroups,
    scorer_of: ScorerOf,
    give_back: Callable[[], None],
    is_zero_3: bool,
) -> tuple[float, list[WindowScores]]:
    """The divisor, and what the objective asks of the window; without a collective where it asks nothing."""
    if not objective.needs_window_sums:
        return 1.0, [NOTHING_OF_THE_WINDOW] * len(window.micro_batches)
    counts = window.count(groups, objective.weight, objective.window_sums)
    return counts.divisor, window_scores(objective, window, counts, groups, scorer_of, give_back, is_zero_3)


class Evaluating(Callback):
    """Evaluates every `eval_steps` optimizer steps (-1: never), after every epoch if wished, where a callback asks for
    it, and at the end."""

    def __init__(self, eval_steps: int, at_end: bool = True, every_epoch: bool = False):
        self._eval_steps, self._at_end, self._every_epoch = eval_steps, at_end, every_epoch

    def on_run_begin(self, trainer: Trainer) -> None:
        """The evaluation comes first that was due when the run was asked to leave."""
        progress = trainer.progress
        if progress.left_early and progress.last_eval_step != progress.optimizer_step:
            trainer.wishes.evaluation |= progress.evaluation_wished
            self.on_step_end(trainer, {})

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        is_wished, trainer.wishes.evaluation = trainer.wishes.evaluation, False
        is_due = self._eval_steps > 0 and trainer.progress.optimizer_step % self._eval_steps == 0
        if is_wished or is_due or (self._every_epoch and ends_epoch(trainer)):
            self._evaluate(trainer)

    def on_run_end(self, trainer: Trainer) -> None:
        if self._at_end and trainer.progress.last_eval_step != trainer.progress.optimizer_step:
            self._evaluate(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        trainer.evaluate(trainer.eval_dataloader, trainer.progress.optimizer_step)  # a subclass may ask for both


class EarlyStop(Callback):
    """Ends the run after `patience` evaluations in a row without a lower `eval_loss` than the best before them."""

    def __init__(self, patience: int):
        self._patience = patience

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        progress = trainer.progress
        if progress.num_evals_since_best >= self._patience:
            loss, step = progress.best_eval_loss, progress.best_eval_step
            best = "none had a finite loss" if loss is None else f"the best was {loss:.4f} at step {step}"
            trainer.request_stop(
                f"{progress.num_evals_since_best} evaluations without a new best (--train.early_stop_patience "
                f"{self._patience}); {best}"
            )
