"""One record in, every sink told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from openrlhf.tracking.records import EvalRecord, StepRecord
from openrlhf.tracking.sinks import Sink

logger = logging.getLogger(__name__)


class Tracker:
    """Hands records to sinks: to `every_step` always, to `slow` every `logging_steps` and for the last step.

    A slow sink that raises (its server is gone, say) is reported and left out from then on; training goes on.
    Without sinks, as on all ranks but the first, it does nothing.
    """

    def __init__(self, every_step: Sequence[Sink] = (), slow: Sequence[Sink] = (), logging_steps: int = 1):
        assert logging_steps >= 1, f"logging_steps is {logging_steps}"
        self._every_step = list(every_step)
        self._slow = list(slow)
        self._logging_steps = logging_steps
        self._not_told_yet: StepRecord | None = None

    def log_step(self, record: StepRecord) -> None:
        """An optimizer step is done."""
        for sink in self._every_step:
            sink.log_step(record)
        self._not_told_yet = record
        if record["global_step"] % self._logging_steps == 0:
            self._tell_slow_sinks()

    def log_eval(self, record: EvalRecord) -> None:
        """An evaluation is done."""
        for sink in self._every_step:
            sink.log_eval(record)
        self._for_each_slow_sink(lambda sink: sink.log_eval(record))

    def close(self) -> None:
        """Nothing follows: the last step reaches every sink, and all are closed."""
        self._tell_slow_sinks()
        for sink in self._every_step:
            sink.close()
        self._for_each_slow_sink(lambda sink: sink.close())

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
