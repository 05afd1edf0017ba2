"""The end of an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer


def ends_epoch(trainer: Trainer) -> bool:
    """Whether the step that is done is the last of its epoch; never where a loader does not know its length."""
    steps_per_epoch = trainer.windows.steps_per_epoch
    return bool(steps_per_epoch) and trainer.progress.optimizer_step % steps_per_epoch == 0
