"""Callbacks of a user's own, for runs in the tests."""

from __future__ import annotations

import os
import signal
from typing import Any

from openrlhf.trainer import Callback, Trainer
from openrlhf.trainer.callbacks.epochs import ends_epoch


class Notes(Callback):
    """Logs a number and notes the order of events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_run_begin(self, trainer: Trainer) -> None:
        self.events.append("run begin")

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.events.append(f"step {metrics['global_step']}")
        trainer.log({"twice_the_loss": 2 * metrics["loss"]})

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.events.append(f"evaluate {metrics['global_step']}")
        trainer.log({"eval_mine": 7.0})

    def on_save(self, trainer: Trainer, path: str) -> None:
        self.events.append(f"save {os.path.basename(path)}")

    def on_run_end(self, trainer: Trainer) -> None:
        self.events.append("run end")

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        self.events.append(f"exit {type(error).__name__}")
        print(" | ".join(self.events), flush=True)


class LogsAtTheEnd(Callback):
    def on_run_end(self, trainer: Trainer) -> None:
        trainer.log({"last_word": 7.0})


class AskedToLeaveAtTheBegin(Callback):
    """By a scheduler that signals once, before the run's own listener is there: the user's callbacks come first."""

    def on_run_begin(self, trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class SpoilsTheExport(Callback):
    """By an error that nobody foresaw."""

    def on_run_end(self, trainer: Trainer) -> None:
        def save_model(*args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError("a fault of ours")

        trainer.strategy.save_model = save_model  # type: ignore[method-assign]


class SaveAtEpochs(Callback):
    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if ends_epoch(trainer):
            trainer.request_save()


class SaveAtStepTwo(Callback):
    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if metrics["global_step"] == 2:
            trainer.request_save()


class EvaluateAtStepFive(Callback):
    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if metrics["global_step"] == 5:
            trainer.request_evaluation()


class AskedToLeaveInAnEvaluation(Callback):
    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if metrics["global_step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)


class StopAtStepThree(Callback):
    """Asks on the last rank alone."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if metrics["global_step"] == 3 and trainer.strategy.get_rank() == trainer.strategy.world_size - 1:
            trainer.request_stop("three steps are enough")


class RaisesAtStepThree(Callback):
    """Raises on the last rank alone."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if metrics["global_step"] == 3 and trainer.strategy.get_rank() == trainer.strategy.world_size - 1:
            raise KeyError("no such thing")


class LogsALoss(Callback):
    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        trainer.log({"loss": 0.0})


class LogsWords(Callback):
    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        trainer.log({"mood": "good"})  # type: ignore[dict-item]


class RaisesAtTheEnd(Callback):
    """When the last step is saved and before the model is exported."""

    def on_run_end(self, trainer: Trainer) -> None:
        raise OSError("the machine is going down")


class RaisesOnExit(Callback):
    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        raise OSError("no room for my notes")


class ChangesTheRecord(Callback):
    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        metrics["loss"] = -5.0


class NeedsAnArgument(Callback):
    def __init__(self, path: str):
        self.path = path


class NoCallback:
    pass


class SavesByItself(Callback):
    """Saves and exports by the strategy's own methods, as scripts do."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if metrics["global_step"] == 1:
            folder = trainer.strategy.args.ckpt.output_dir
            trainer.strategy.save_ckpt(trainer.model, f"{folder}/own", "global_step1")
            trainer.strategy.save_model(trainer.model, trainer.tokenizer, f"{folder}/own_model")
