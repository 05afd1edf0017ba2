"""When a run saves, and what: training checkpoints, and the model along the way."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from openrlhf.checkpoint.checkpointer import Checkpointer, SaveReport
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.config.settings import CkptConfig
from openrlhf.exit_codes import RunStopped
from openrlhf.models import Actor
from openrlhf.parallel.collectives import any_rank
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.exports import ExportsAlongTheWay


class SavesFailed(RunStopped):
    """Several saves in a row failed: going on would train for nothing."""


class Saver:
    """Saves a run when it is due.

    Args:
        checkpoints: writes training checkpoints; None: none are written.
        exports: saves the model in Hugging Face form along the way; None: not wanted.
    """

    def __init__(
        self,
        strategy: DeepspeedStrategy,
        model: Actor,
        scheduler: Any,
        identity: RunIdentity,
        checkpoints: Checkpointer | None,
        exports: ExportsAlongTheWay | None,
        schedule: CkptConfig,
    ):
        self._strategy = strategy
        self._model = model
        self._scheduler = scheduler
        self._identity = identity
        self._checkpoints = checkpoints
        self._exports = exports
        self._schedule = schedule
        self._last_save = time.monotonic()

    def is_due(self, optimizer_step: int) -> bool:
        """The same answer on every rank: rank 0's clock counts."""
        every = self._schedule.save_steps
        if every > 0 and optimizer_step % every == 0:
            return True
        if self._schedule.save_minutes is None:
            return False
        is_late = time.monotonic() - self._last_save >= 60 * self._schedule.save_minutes
        return any_rank(is_late and self._strategy.is_rank_0(), self._strategy.groups.control)

    @property
    def writes_checkpoints(self) -> bool:
        return self._checkpoints is not None

    @property
    def saves_along_the_way(self) -> bool:
        return self._schedule.save_steps > 0 or self._schedule.save_minutes is not None

    def save(self, progress: TrainingProgress, eval_loss: float | None) -> None:
        """Begins a save; training may go on while it is written.

        Raises SavesFailed after several failures in a row.
        """
        if self._checkpoints is not None:
            client_state = {"guard": self._strategy.guard.state_dict()}
            with self._strategy.watchdog.long_phase(f"save after step {progress.optimizer_step}"):
                report = self._checkpoints.save(
                    self._model.engine, progress, self._identity, client_state, eval_loss, self._scheduler
                )
            self._look_at(report)
        if self._exports is not None:
            for problem in self._exports.export(progress.optimizer_step, eval_loss):
                self._strategy.print(f"warning: {problem}")
        self._last_save = time.monotonic()

    def save_at_end(self, progress: TrainingProgress, eval_loss: float | None) -> None:
        """The last checkpoint says that the run has finished; a run that saved nothing along the way has none."""
        if self.saves_along_the_way:
            self.save(progress, eval_loss)

    def wait(self) -> None:
        """Until what was begun is on disk."""
        if self._checkpoints is not None:
            with self._strategy.watchdog.long_phase("waiting for the last save"):
                report = self._checkpoints.wait()
            self._look_at(report)

    def _look_at(self, report: SaveReport) -> None:
        for problem in report.problems:
            self._strategy.print(f"warning: {problem}")
        if report.num_failures_in_a_row >= self._schedule.max_failed_saves_in_a_row:
            raise SavesFailed(
                f"{report.num_failures_in_a_row} saves in a row have failed (--ckpt.max_failed_saves_in_a_row): the "
                "run stops; the last good checkpoint is intact."
            )

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, RunStopped | SystemExit):
            self.wait()
        elif self._checkpoints is not None:  # after an error on one rank, the others may not be there to agree with
            self._checkpoints.abandon()
