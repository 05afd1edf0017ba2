"""The end of an epoch; saving there, as recipes of TRL ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer


class SaveAtEpochs(Callback):
    """Asks for a save after the last step of each epoch."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if ends_epoch(trainer):
            trainer.request_save()


def ends_epoch(trainer: Trainer) -> bool:
    """Whether the step that is done is the last of its epoch; never where a loader does not know its length."""
    steps_per_epoch = trainer.windows.steps_per_epoch
    return bool(steps_per_epoch) and trainer.progress.optimizer_step % steps_per_epoch == 0
