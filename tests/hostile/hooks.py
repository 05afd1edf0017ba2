"""What a case does inside of a rank before its command: functions of a module, as they travel to the rank by name."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from openrlhf.objectives import SFTObjective, Share
from openrlhf.trainer import Callback, Trainer

# --- standard streams ---


def break_pipe(*numbers: int) -> None:
    """These streams are pipes that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    for number in numbers:
        os.dup2(writer, number)


def fill_disk_of(*numbers: int) -> None:
    """These streams go to a disk that is full."""
    full = os.open("/dev/full", os.O_WRONLY)
    for number in numbers:
        os.dup2(full, number)


def close(*numbers: int) -> None:
    """These streams are closed, as by `>&-` of a shell."""
    import sys

    for number in numbers:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)


# --- signals ---


def ignore(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)


def signal_at_export(number: int) -> None:
    """The signal comes while the trained model is exported."""
    from openrlhf.checkpoint import export

    _before(export, "write_weights", lambda: os.kill(os.getpid(), number))


def signal_while_reading(number: int) -> None:
    """The signal comes while the data are prepared."""
    from openrlhf.run import training_run

    _before(training_run, "build_train_data", lambda: os.kill(os.getpid(), number))


def _before(module: Any, name: str, act: Callable[[], None]) -> None:
    function = getattr(module, name)

    def acting(*args: Any, **kwargs: Any) -> Any:
        act()
        return function(*args, **kwargs)

    setattr(module, name, acting)


# --- disks ---


def checkpoints_do_not_fit() -> None:
    """The disk of the checkpoints is full, and stays so; that of the model is not."""
    from openrlhf.checkpoint.store import CheckpointStore

    CheckpointStore.begin = _no_space  # type: ignore[method-assign, assignment]


def nothing_fits() -> None:
    """No checkpoint, no model, no weights can be written once the run has been trained."""
    from openrlhf.checkpoint import export

    checkpoints_do_not_fit()
    export.write_tensors = _no_space  # type: ignore[assignment]
    export.ShardWriter.add = _no_space  # type: ignore[method-assign, assignment]


def little_space() -> None:
    """The disk has ten kilobytes left, as it says itself."""
    usage = SimpleNamespace(total=1 << 40, used=1 << 40, free=10_000)
    shutil.disk_usage = lambda path: usage  # type: ignore[assignment, return-value]


def _no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


# --- leases ---


def be_quick_about_leases(seconds_until_refused: float = 1.0, seconds_until_dead: float = 2.0) -> None:
    from openrlhf.checkpoint import lease

    lease.SECONDS_UNTIL_REFUSED, lease.SECONDS_UNTIL_DEAD = seconds_until_refused, seconds_until_dead
    lease.SECONDS_BETWEEN_RENEWALS = 0.3


# --- training that goes wrong ---


class LossIsNan(SFTObjective):
    """The loss of every step is nan, its gradient too."""

    def loss(self, scorer: Any, batch: Any, divisor: float) -> Share:
        share = super().loss(scorer, batch, divisor)
        total, count = share.sums["loss"]
        return Share(share.loss * float("nan"), {**share.sums, "loss": (total * float("nan"), count)})


class WeightsBecomeNan(Callback):
    """A weight is nan after the last step."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.progress.optimizer_step == 4:
            with torch.no_grad():
                next(iter(trainer.model.model.parameters())).view(-1)[0] = float("nan")


class WeightsBecomeNan3(Callback):
    """A part of a weight that ZeRO-3 has cut is nan after the last step, on the second rank."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.progress.optimizer_step == 4 and trainer.strategy.get_rank() == 1:
            for parameter in trainer.model.model.parameters():
                parameter.ds_tensor.fill_(float("nan"))


class Raises(Callback):
    """At step 3."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.progress.optimizer_step == 3:
            raise ValueError("the callback's own fault")


class Slow(Callback):
    """A step takes a tenth of a second at least."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        import time

        time.sleep(0.1)


class RemovesMetrics(Callback):
    """metrics.jsonl, or the whole output folder, is removed after step 2."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.progress.optimizer_step == 2:
            os.unlink("out/metrics.jsonl")


class ReplacesMetrics(Callback):
    """An editor saves metrics.jsonl after step 2: another file has its name then."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.progress.optimizer_step == 2:
            shutil.copy("out/metrics.jsonl", "out/copy")
            os.replace("out/copy", "out/metrics.jsonl")


class RemovesOutput(Callback):
    """The output folder is removed after step 2."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.progress.optimizer_step == 2:
            shutil.rmtree("out")
