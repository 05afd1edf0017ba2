"""OpenRLHF's hook after a step, for trainers of the user's own that override it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from openrlhf.trainer.callbacks.callback import Callback

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer

NAMES_OF_A_STEP = ("gpt_loss", "loss_mean", "lr", "aux_loss")


class ScriptHook(Callback):
    """Calls `hook(args, global_step, step_bar, logs_dict, client_states)` after every step."""

    def __init__(self, hook: Callable[..., None], args: Any):
        self._hook, self._args = hook, args
        self._no_bar = tqdm(disable=True)  # the bar that is seen is the tracker's

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        logs = {"gpt_loss": metrics["loss"], "loss_mean": metrics["loss"]}
        logs |= {name: metrics[name] for name in ("lr", "aux_loss") if name in metrics}
        progress = trainer.progress
        states = {"consumed_samples": progress.consumed_samples}
        self._hook(self._args, progress.optimizer_step, self._no_bar, logs, states)
