"""A callback: what happens at an event of the loop, beside the step."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from openrlhf.exit_codes import RunStopped

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer


class Callback:
    """Does something at the loop's events, on every rank. Each method does nothing until a subclass says otherwise.

    A method may read `trainer.progress`, `trainer.model` and `trainer.last_step`, add numbers to the next record by
    `trainer.log({...})`, and ask for a save or for the end of the run by `trainer.request_save()` and
    `trainer.request_stop(reason)`. A method that raises ends the run in order, with the callback's name.
    """

    def on_run_begin(self, trainer: Trainer) -> None:
        """The first step is next."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """An optimizer step is done; `metrics` are its record."""

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """An evaluation is done; `metrics` are its record, with the prefix `eval_`."""

    def on_save(self, trainer: Trainer, path: str) -> None:
        """A save has begun: the checkpoint `path` is being written, or is in place."""

    def on_run_end(self, trainer: Trainer) -> None:
        """The last step is done, and its evaluation and save; not called where the run ends by an error."""

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        """The loop is left, in the reverse order of the callbacks; `error` is the reason, None at a proper end."""


class CallbackFailed(RunStopped):
    """A callback of the user's own has raised."""


@contextmanager
def failures_told(callback: Callback, event: str, failures: list[str]) -> Iterator[None]:
    """Around a call of a user's callback: an error becomes a line in `failures`, with the place in the user's code."""
    try:
        yield
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        failures.append(
            f"the callback {type(callback).__name__} raised in {event}: {type(error).__name__}: {error} "
            f"({place.filename}:{place.lineno})"
        )
