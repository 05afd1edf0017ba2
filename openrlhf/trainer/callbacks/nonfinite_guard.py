"""The guard over steps whose numbers are not finite: each is told, and several in a row stop the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from openrlhf.engine.engine_state import is_at_least_loss_scale
from openrlhf.engine.parameters import names_of_non_finite
from openrlhf.exit_codes import RunStopped
from openrlhf.parallel.collectives import gather_objects
from openrlhf.trainer.callbacks.callback import Callback
from openrlhf.trainer.step import StepResult

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer

MAX_MICRO_BATCHES_SHOWN = 8
MAX_NAMES_SHOWN = 4


class NonFiniteSteps(RunStopped):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class NonFiniteGuard(Callback):
    """Counts non-finite steps in a row.

    Args:
        max_in_a_row: the run stops after that many.
        ignores_overflow: fp16 lowers its loss scale on an overflowing gradient; while it can, only its loss counts.
    """

    def __init__(self, max_in_a_row: int, ignores_overflow: bool):
        self._max_in_a_row = max_in_a_row
        self._ignores_overflow = ignores_overflow
        self._num_in_a_row = 0
        self._last_loss = 0.0

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        ignores_overflow = self._ignores_overflow and not is_at_least_loss_scale(trainer.trained.engine)
        message = self._look_at(trainer.last_step, trainer.progress.optimizer_step, ignores_overflow)
        if message:
            trainer.strategy.print(message)

    def on_run_end(self, trainer: Trainer) -> None:
        """A run whose last loss or weights are not finite has not been trained: it is neither saved as finished nor
        exported."""
        step = trainer.progress.optimizer_step
        names = names_of_non_finite(trainer.model.model)
        of_ranks = gather_objects(names[:MAX_NAMES_SHOWN], trainer.strategy.groups.control)
        found = list(dict.fromkeys(name for names in of_ranks for name in names))[:MAX_NAMES_SHOWN]
        if found:
            raise NonFiniteSteps(
                f"after the last step, {step}, weights are not finite, such as {', '.join(found)}. The model is not "
                "exported."
            )
        if not math.isfinite(self._last_loss):
            raise NonFiniteSteps(f"the loss of the last step, {step}, is not finite. The model is not exported.")

    def _look_at(self, result: StepResult, optimizer_step: int, ignores_overflow: bool) -> str | None:
        """The words for people about this step, if there is anything to say.

        Raises NonFiniteSteps with the last good step.
        """
        self._last_loss = result.loss
        if result.is_finite or (ignores_overflow and not result.suspects):
            self._num_in_a_row = 0
        else:
            self._num_in_a_row += 1
        if result.outcome.is_applied and result.is_finite:
            return None
        message = _in_words(result, optimizer_step)
        if self._num_in_a_row >= self._max_in_a_row:
            raise NonFiniteSteps(
                f"{message}\nThat is {self._num_in_a_row} steps in a row (--train.max_nonfinite_steps_in_a_row): "
                f"it stops. The last good weights are those of step {optimizer_step - self._num_in_a_row}. Look at "
                "the samples named above, or lower the learning rate."
            )
        return message


def _in_words(result: StepResult, optimizer_step: int) -> str:
    numbers = f"step {optimizer_step}: loss {result.loss:.4g}, gradient norm {result.outcome.grad_norm:.4g}"
    done = "applied" if result.outcome.is_applied else f"skipped on all ranks ({result.outcome.reason})"
    suspects = result.suspects[:MAX_MICRO_BATCHES_SHOWN]
    more = len(result.suspects) - len(suspects)
    lines = [f"{numbers}; {done}.", *(f"  loss not finite on {line}" for line in suspects)]
    return "\n".join([*lines, f"  and {more} more micro-batches"] if more else lines)
