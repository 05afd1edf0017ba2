"""Tracking: the record of each step and of each evaluation goes where people look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from openrlhf.tracking.tracker import Tracker
from openrlhf.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer


class Tracking(Callback):
    """Hands records to a tracker, and closes it."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._log_events(trainer)
        memory = {"gpu_memory_bytes": _peak_bytes(trainer)} if trainer.strategy.device.type == "cuda" else {}
        self._tracker.log_step(metrics | memory | trainer.take_logged())
        self._tracker.log_answers(trainer.take_answers())

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._log_events(trainer)
        self._tracker.log_eval(metrics | trainer.take_logged())

    def _log_events(self, trainer: Trainer) -> None:
        for event in trainer.take_events():
            self._tracker.log_event(event)

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        self._log_events(trainer)
        self._tracker.log_answers(trainer.take_answers())
        self._tracker.close()


def _peak_bytes(trainer: Trainer) -> int:
    """The most that this rank's GPU has held since the last step."""
    device = trainer.strategy.device
    peak_bytes = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak_bytes
