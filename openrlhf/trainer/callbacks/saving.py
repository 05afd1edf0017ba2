"""Saving: training checkpoints, and the model in Hugging Face form along the way."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf.checkpoint.checkpointer import Checkpointer, SaveReport
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.config import CkptConfig
from openrlhf.errors import UserError
from openrlhf.exit_codes import RunStopped
from openrlhf.parallel.collectives import any_rank
from openrlhf.trainer.callbacks.callback import Callback
from openrlhf.trainer.callbacks.epochs import ends_epoch
from openrlhf.trainer.exporter import ExporterAlongTheWay

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer


class SavesFailed(RunStopped):
    """Several saves in a row failed: going on would train for nothing."""


class Saving(Callback):
    """Saves the run when it is due, and at its end.

    Args:
        checkpointer: writes training checkpoints; None: none are written.
        exporter: writes the model in Hugging Face form at each save; None: it is not wanted.
        ckpt: when to save, and how many failures in a row are too many.
        identity: a checkpoint of this run is recognised by it.
    """

    def __init__(
        self,
        checkpointer: Checkpointer | None,
        exporter: ExporterAlongTheWay | None,
        ckpt: CkptConfig,
        identity: RunIdentity,
    ):
        self._checkpointer = checkpointer
        self._exporter = exporter
        self._ckpt = ckpt
        self._identity = identity
        self._last_save_at = time.monotonic()
        self._has_seen_state = False  # of the optimizer, after an update
        self._leaves_checkpoints = ckpt.saves_along_the_way

    @property
    def writes_checkpoints(self) -> bool:
        return self._checkpointer is not None

    def on_run_begin(self, trainer: Trainer) -> None:
        progress = trainer.progress
        if progress.optimizer_step:  # it goes on from one
            self._leaves_checkpoints = True
        is_wished, trainer.wishes.save = trainer.wishes.save or progress.save_wished, False
        is_due = is_wished or self._is_step_of_a_save(trainer)
        if progress.left_early and progress.eval_loss_here is not None and is_due:
            trainer.progress = replace(progress, left_early=False, save_wished=False)
            self.save(trainer)  # again: its checkpoint did not know the loss, and may be the best

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Saves where it is due. Raises UserError where the first update shows that no checkpoint can be written."""
        if not self._has_seen_state and trainer.last_step.outcome.is_applied:
            self._has_seen_state = True
            self._check_state(trainer)
        is_wished, trainer.wishes.save = trainer.wishes.save, False
        if is_wished or self._is_due(trainer):
            self.save(trainer)

    def on_run_end(self, trainer: Trainer) -> None:
        """The last checkpoint says that the run has finished; one that began anew and was to save nothing has none."""
        if self._leaves_checkpoints:
            self.save(trainer)

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        if error is None or isinstance(error, RunStopped | SystemExit):
            has_failed = self.wait(trainer)
            last = _path_of(self._ckpt, trainer.progress.optimizer_step)
            if error is None and has_failed and self._leaves_checkpoints and not last.is_dir():
                trainer.strategy.print(f"warning: {last} is not there, its save has failed: nothing can go on from it.")
        elif self._checkpointer is not None:  # after an error on one rank the others may not be there to agree with
            self._checkpointer.abandon()

    def save(self, trainer: Trainer) -> None:
        """Begins a save; training may go on while it is written.

        Raises SavesFailed after several failures in a row.
        """
        step = trainer.progress.optimizer_step
        with trainer.strategy.watchdog.long_phase(f"save after step {step}"):
            if self._checkpointer is not None:
                self._look_at(self._save_checkpoint(self._checkpointer, trainer), trainer)
            if self._exporter is not None:
                exported = self._exporter.export(step, trainer.progress.eval_loss_here)
                # beside checkpoints a failure costs no state of the run
                self._look_at(replace(exported, num_failures_in_a_row=0) if self._checkpointer else exported, trainer)
        self._last_save_at = time.monotonic()
        trainer.emit("on_save", str(_path_of(self._ckpt, step)))

    def wait(self, trainer: Trainer) -> bool:
        """Until the save that was begun is on disk. Returns True where it, or one begun before, has failed."""
        if self._checkpointer is None:
            return False
        with trainer.strategy.watchdog.long_phase("waiting for the last save"):
            report = self._checkpointer.wait()
        self._look_at(report, trainer)
        return report.num_failures_in_a_row > 0

    def _check_state(self, trainer: Trainer) -> None:
        """Not at the first save, which may come hours later."""
        if self._checkpointer is None:
            return
        problem = self._checkpointer.problem_of_state(trainer.trained.engine)
        if problem and self._leaves_checkpoints:
            raise UserError(problem)
        if problem:
            trainer.strategy.print(f"warning: {problem}")

    def _save_checkpoint(self, checkpointer: Checkpointer, trainer: Trainer) -> SaveReport:
        trained = trainer.trained
        return checkpointer.save(
            trained.engine,
            trainer.progress,
            self._identity,
            trainer.states_to_save,
            trainer.progress.eval_loss_here,
            trained.scheduler,
        )

    def _is_due(self, trainer: Trainer) -> bool:
        """The same answer on every rank: rank 0's clock counts."""
        if self._is_step_of_a_save(trainer):
            return True
        if self._ckpt.save_minutes is None:
            return False
        is_late = time.monotonic() - self._last_save_at >= 60 * self._ckpt.save_minutes
        return any_rank(is_late and trainer.strategy.is_rank_0(), trainer.strategy.groups.control)

    def _is_step_of_a_save(self, trainer: Trainer) -> bool:
        every = self._ckpt.save_steps
        is_due = every > 0 and trainer.progress.optimizer_step % every == 0
        return is_due or (self._ckpt.every_epoch and ends_epoch(trainer))

    def _look_at(self, report: SaveReport, trainer: Trainer) -> None:
        for notice in report.notices:
            trainer.strategy.print(notice)
        for problem in report.problems:
            trainer.strategy.print(f"warning: {problem}")
        if trainer.progress.finished:  # the trained model is exported all the same
            return
        if report.num_failures_in_a_row >= self._ckpt.max_failed_saves_in_a_row:
            raise SavesFailed(
                f"{report.num_failures_in_a_row} saves in a row have failed (--ckpt.max_failed_saves_in_a_row): the "
                "run stops."
            )


def _path_of(ckpt: CkptConfig, optimizer_step: int) -> Path:
    store = CheckpointStore(ckpt.path)
    return store.root / store.name_of(optimizer_step)
