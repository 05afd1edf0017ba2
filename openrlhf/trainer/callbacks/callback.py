"""A callback, for all that happens at an event of the loop beside the step; and the list of a run's callbacks."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from openrlhf.errors import UserError
from openrlhf.exit_codes import RankLost, RunStopped
from openrlhf.parallel.collectives import gather_objects

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer


class Callback:
    """Does something at the loop's events, on every rank. Each method does nothing until a subclass says otherwise.

    A method may read `trainer.progress`, `trainer.model` and `trainer.last_step`, add numbers to the next record by
    `trainer.log({...})`, and ask for a save, an evaluation or the end of the run by `trainer.request_save()`,
    `trainer.request_evaluation()` and `trainer.request_stop(reason)`. A method that raises ends the run in order, with
    the callback's name.
    """

    def on_run_begin(self, trainer: Trainer) -> None:
        """The first step is next."""

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """An optimizer step is done; `metrics` are its record."""

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """An evaluation is done; `metrics` are its record, with the prefix `eval_`, or the one that it was asked by."""

    def on_save(self, trainer: Trainer, path: str) -> None:
        """A save has begun: the checkpoint `path` is being written, or is in place."""

    def on_run_end(self, trainer: Trainer) -> None:
        """The last step is done, and its evaluation and save; not called where the run ends by an error."""

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        """The loop is left, in the reverse order of the callbacks; `error` is the reason, None at a proper end."""


class CallbackFailed(RunStopped):
    """A callback of the user's own has raised."""


class CannotBegin(UserError):
    """A callback of ours does not get what the settings name; it raises this at `on_run_begin`, on all ranks alike."""


@contextmanager
def failures_told(callback: Callback, event: str, failures: list[str]) -> Iterator[None]:
    """Around a call of a user's callback: an error becomes a line in `failures`, with the place in the user's code."""
    try:
        yield
    except RankLost:  # of an evaluation that the callback has asked for: the other ranks are past agreeing
        raise
    except CannotBegin:  # the other ranks raise it too
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        failures.append(
            f"the callback {type(callback).__name__} raised in {event}: {type(error).__name__}: {error} "
            f"({place.filename}:{place.lineno})"
        )


@dataclass
class Wishes:
    """The wishes of a callback, until the ranks have agreed on them and the loop has seen to them."""

    stop_reason: str | None = None
    save: bool = False
    evaluation: bool = False


class CallbackList:
    """The callbacks of a run, in order: the user's own, then the standard ones. Each event reaches all of them."""

    def __init__(self, trainer: Trainer, users: Sequence[Callback] = (), standard: Sequence[Callback] = ()):
        self._trainer = trainer
        self._users = list(users)
        self._standard = list(standard)

    def emit(self, event: str, *facts: Any) -> None:
        """All ranks call. Raises CallbackFailed, on all ranks, where one of the user's has raised on any."""
        self._tell_users(event, *facts)
        self._tell_standard(event, *facts)

    def emit_record(self, event: str, record: dict[str, float]) -> None:
        """The record itself is for the standard ones; the user's get a copy, and add numbers by `trainer.log`."""
        self._tell_users(event, dict(record))
        self._tell_standard(event, record)

    def emit_end(self) -> None:
        """`on_run_end`: the last evaluation and the last save come first."""
        self._tell_standard("on_run_end")
        self._tell_users("on_run_end")

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Around the loop: `on_exit` reaches the callbacks in reverse order, each whatever the others do."""
        with ExitStack() as exits:
            for callback in (*self._users, *self._standard):
                exits.push(partial(self._leave, callback))
            yield

    def _leave(
        self,
        callback: Callback,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if callback in self._standard:
            callback.on_exit(self._trainer, error)
            return
        failures: list[str] = []
        with failures_told(callback, "on_exit", failures):
            callback.on_exit(self._trainer, error)
        for line in failures:  # the training is done, or has failed for another reason: this changes neither
            print(f"warning: rank {self._trainer.strategy.get_rank()}: {line}", file=sys.stderr, flush=True)

    def _tell_standard(self, event: str, *facts: Any) -> None:
        for callback in self._standard:
            getattr(callback, event)(self._trainer, *facts)

    def _tell_users(self, event: str, *facts: Any) -> None:
        failures: list[str] = []
        for callback in self._users:
            with failures_told(callback, event, failures):
                getattr(callback, event)(self._trainer, *facts)
        if self._users:
            self._agree(failures)

    def _agree(self, failures: list[str]) -> None:
        """A callback may raise, or wish something, on one rank only: then all ranks stop, or do it, together."""
        wishes = self._trainer.wishes
        of_ranks = gather_objects((failures, wishes), self._trainer.strategy.groups.control)
        lines = [f"rank {rank}: {line}" for rank, (lines, _) in enumerate(of_ranks) for line in lines]
        if lines:
            raise CallbackFailed("\n".join([*lines, "The run stops; its training checkpoints are intact."]))
        wished = [of_rank for _, of_rank in of_ranks]
        wishes.stop_reason = next((one.stop_reason for one in wished if one.stop_reason is not None), None)
        wishes.save = any(one.save for one in wished)
        wishes.evaluation = any(one.evaluation for one in wished)
