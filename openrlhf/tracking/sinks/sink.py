"""What every sink can do."""

from __future__ import annotations

from typing import Protocol

from openrlhf.tracking.records import EvalRecord, StepRecord


class Sink(Protocol):
    """Takes records of rank 0 to where people look."""

    def log_step(self, record: StepRecord) -> None:
        """An optimizer step is done."""

    def log_eval(self, record: EvalRecord) -> None:
        """An evaluation is done."""

    def close(self) -> None:
        """Nothing follows; what waits is written now."""
