"""Tracking: the record of each step and of each evaluation goes where people look."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from openrlhf.exit_codes import Outcome, RunStopped
from openrlhf.parallel.collectives import any_rank
from openrlhf.tracking.tracker import Tracker
from openrlhf.trainer.callbacks.callback import Callback
from openrlhf.trainer.callbacks.preemption import Preempted

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer

_BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024


class Tracking(Callback):
    """Hands records to a tracker, and closes it."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker

    def on_run_begin(self, trainer: Trainer) -> None:
        if trainer.progress.left_early:  # what is logged now is of its last step, whose record is written
            self._log_more(trainer)

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        with self._waiting_for_servers(trainer):
            self._log_events(trainer)
            self._tracker.log_step(metrics | _peak_bytes(trainer.strategy.device) | trainer.take_logged())
            self._tracker.log_answers(trainer.take_answers())

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        with self._waiting_for_servers(trainer):
            self._log_events(trainer)
            is_of_the_run = "eval_loss" in metrics
            log = self._tracker.log_eval if is_of_the_run else self._tracker.log_more
            log(metrics | trainer.take_logged())

    @contextmanager
    def _waiting_for_servers(self, trainer: Trainer) -> Iterator[None]:
        """One that is silent may hold rank 0 up for many minutes, until it is left out: all ranks wait with it here,
        where the watchdog takes none of them for stuck."""
        if not self._tracker.has_servers:
            yield
            return
        with trainer.strategy.watchdog.long_phase("handing numbers to the trackers"):
            yield
            any_rank(False, trainer.strategy.groups.control)

    def _log_events(self, trainer: Trainer) -> None:
        for event in trainer.take_events():
            self._tracker.log_event(event)

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        """The other ranks wait for rank 0, which may have much to send; after an error on one rank they are gone."""
        with trainer.strategy.watchdog.long_phase("closing the trackers"):
            self._close(trainer, _outcome_of(error))
            if error is None or isinstance(error, RunStopped | SystemExit):
                any_rank(False, trainer.strategy.groups.control)

    def _close(self, trainer: Trainer, outcome: Outcome) -> None:
        self._log_events(trainer)
        self._log_more(trainer)  # of callbacks, at the end of the run
        self._tracker.close(outcome)

    def _log_more(self, trainer: Trainer) -> None:
        if more := trainer.take_logged():
            self._tracker.log_more({"global_step": trainer.progress.optimizer_step} | more)
        self._tracker.log_answers(trainer.take_answers())


def _outcome_of(error: BaseException | None) -> Outcome:
    if error is None:
        return "finished"
    return "preempted" if isinstance(error, Preempted) else "failed"


def _peak_bytes(device: torch.device) -> dict[str, int]:
    """The most that this rank's GPU has held since the last step; without one, that this process ever held."""
    if device.type != "cuda":
        return {"host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_OF_MAXRSS}
    peak_bytes = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"gpu_memory_bytes": peak_bytes}
