"""One record in, every sink told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from openrlhf.config import LoggerConfig
from openrlhf.exit_codes import Outcome
from openrlhf.tracking.metrics_file import METRICS_FILE, JsonLinesSink, note_restart
from openrlhf.tracking.more_sinks import SINKS
from openrlhf.tracking.sinks import TensorBoardSink, console_sink

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes records of rank 0 to where people look.

    A record is numbers by name, in the order of `metrics.jsonl`; `global_step`, the number of optimizer steps
    done, is always among them. Names of an evaluation begin with `eval_`.
    """

    def log_step(self, record: Mapping[str, float]) -> None:
        """An optimizer step is done."""

    def log_eval(self, record: Mapping[str, float]) -> None:
        """An evaluation is done."""

    def log_more(self, record: Mapping[str, float]) -> None:
        """Numbers of the last step that were known after its record."""

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """The model has answered prompts: `global_step`, `prompt`, `response` and more of each."""

    def close(self, outcome: Outcome = "finished") -> None:
        """Nothing follows, as the run has ended in that way; the sink writes now whatever still waits."""


class EventSink(Sink, Protocol):
    """A sink that takes events, too."""

    def log_event(self, record: Mapping[str, Any]) -> None:
        """Something has happened beside the steps: JSON values by name, `global_step` among them."""


class Tracker:
    """Hands records to sinks: to `every_step` always, to `slow` every `logging_steps` and for the last step.

    A slow sink that raises (its server is gone, say) is reported and left out from then on; training goes on.
    Without sinks, as on all ranks but the first, it does nothing.

    Args: has_servers: a sink of rank 0 may wait for a server; said on every rank.
    """

    def __init__(
        self,
        every_step: Sequence[EventSink] = (),
        slow: Sequence[Sink] = (),
        logging_steps: int = 1,
        has_servers: bool = False,
    ):
        assert logging_steps >= 1, f"logging_steps is {logging_steps}"
        self.has_servers = has_servers
        self._every_step = list(every_step)
        self._slow = list(slow)
        self._logging_steps = logging_steps
        self._not_told_yet: Mapping[str, float] | None = None

    def log_step(self, record: Mapping[str, float]) -> None:
        """An optimizer step is done."""
        for sink in self._every_step:
            sink.log_step(record)
        self._not_told_yet = record
        if record["global_step"] % self._logging_steps == 0:
            self._tell_slow_sinks()

    def log_eval(self, record: Mapping[str, float]) -> None:
        """An evaluation is done."""
        for sink in self._every_step:
            sink.log_eval(record)
        self._for_each_slow_sink(lambda sink: sink.log_eval(record))

    def log_event(self, record: Mapping[str, Any]) -> None:
        """Something has happened beside the steps; slow sinks draw numbers alone."""
        for sink in self._every_step:
            sink.log_event(record)

    def log_more(self, record: Mapping[str, float]) -> None:
        """See `Sink.log_more`."""
        self._tell_slow_sinks()  # of the step itself
        for sink in self._every_step:
            sink.log_more(record)
        self._for_each_slow_sink(lambda sink: sink.log_more(record))

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """The model has answered prompts; see `Sink.log_answers`."""
        if not answers:
            return
        for sink in self._every_step:
            sink.log_answers(answers)
        self._for_each_slow_sink(lambda sink: sink.log_answers(answers))

    def close(self, outcome: Outcome = "finished") -> None:
        """Nothing follows: the last step reaches every sink, and all are closed."""
        self._tell_slow_sinks()
        for sink in self._every_step:
            sink.close()
        self._for_each_slow_sink(lambda sink: sink.close(outcome))

    def _tell_slow_sinks(self) -> None:
        record, self._not_told_yet = self._not_told_yet, None
        if record is not None:
            self._for_each_slow_sink(lambda sink: sink.log_step(record))

    def _for_each_slow_sink(self, tell: Callable[[Sink], None]) -> None:
        for sink in list(self._slow):
            try:
                tell(sink)
            except Exception:
                logger.exception("%s failed and gets no more records; training goes on.", type(sink).__name__)
                self._slow.remove(sink)


def open_tracker(
    settings: LoggerConfig,
    output_dir: str | Path,
    *,
    num_steps: int,
    is_rank_0: bool,
    resume_step: int | None = None,
    shown_config: Mapping[str, Any] | None = None,
    spare_folder: str | Path | None = None,
    run_id: str | None = None,
) -> Tracker:
    """The tracker of a run; a silent one on all ranks but the first.

    Args:
        output_dir: `metrics.jsonl`, `restarts.jsonl` and W&B's files go here.
        num_steps: optimizer steps of the whole run, for the time left.
        resume_step: optimizer step that the run goes on from; None for a new run.
        shown_config: the settings that W&B shows; without secrets.
        spare_folder: of the lines that `output_dir` has no room for at the end.
        run_id: by which TensorBoard's files of this run are known.

    Raises:
        UserError: a file cannot be written, a library is missing, W&B refuses.
    """
    trackers = _trackers_of(settings)
    if not is_rank_0:
        return Tracker(has_servers=bool(trackers))
    metrics = JsonLinesSink(Path(output_dir) / METRICS_FILE, resume_step, spare_folder)
    note_restart(Path(output_dir), resume_step)
    slow: list[Sink] = [console_sink(num_steps, resume_step or 0)]
    if settings.tensorboard_dir:
        folder, theirs = settings.tensorboard_dir, settings.openrlhf_names
        folder = str(Path(folder, settings.wandb.name)) if theirs and settings.wandb.name else folder
        slow.append(TensorBoardSink(folder, resume_step, theirs, run_id))
    for name in trackers:
        resume = resume_step is not None
        slow.append(
            SINKS[name](output_dir, settings.wandb, shown_config, resume=resume, openrlhf_names=settings.openrlhf_names)
        )
    return Tracker([metrics], slow, settings.logging_steps, has_servers=bool(trackers))


def _trackers_of(settings: LoggerConfig) -> tuple[str, ...]:
    return (*(("wandb",) if settings.wandb.enable else ()), *(settings.trackers or ()))
