"""A callback of one's own: a smoothed loss in every record, and an end of the run when it is low enough.

    python -m openrlhf.cli.train_sft --train.callbacks examples.own_callback:SmoothedLoss FLAGS

In Python: `SFTTrainer(..., callbacks=[SmoothedLoss(stop_below=0.5)])`.
"""

from __future__ import annotations

from openrlhf.trainer import Callback, Trainer

DECAY = 0.9


class SmoothedLoss(Callback):
    """Logs `smoothed_loss`, the mean of the losses so far with weights that fall by a tenth from step to step."""

    def __init__(self, stop_below: float = 0.0):
        self._stop_below = stop_below
        self._sum = self._weight = 0.0

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._sum = DECAY * self._sum + metrics["loss"]
        self._weight = DECAY * self._weight + 1.0
        smoothed_loss = self._sum / self._weight
        trainer.log({"smoothed_loss": smoothed_loss})
        if smoothed_loss < self._stop_below:
            trainer.request_stop(f"the smoothed loss is below {self._stop_below:g}")

    def on_save(self, trainer: Trainer, path: str) -> None:
        trainer.strategy.print(f"smoothed loss at {path}: {self._sum / self._weight:.4f}")
