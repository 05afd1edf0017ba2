"""Which samples make a step: step windows along the run, a pure function of (number of rows, batch size, seed).

Step k of epoch e trains exactly the rows `epoch_order(...)[k * batch_size : (k + 1) * batch_size]`. The last window of
an epoch may be smaller; no row is dropped, none is trained twice in an epoch, none crosses an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from openrlhf.batching.order import epoch_order
from openrlhf.errors import UserError


@dataclass(frozen=True)
class WindowRows:
    """The rows of one optimizer step, over all ranks."""

    epoch: int
    step_in_epoch: int
    rows: np.ndarray  # (num_samples,) int64, in global order


@dataclass(frozen=True)
class StepSchedule:
    """The windows of a run over `num_rows` rows."""

    num_rows: int
    batch_size: int  # samples an optimizer step, over all ranks
    seed: int
    shuffle: bool = True

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def window(self, epoch: int, step_in_epoch: int) -> WindowRows:
        start = step_in_epoch * self.batch_size
        places = np.arange(start, min(start + self.batch_size, self.num_rows))
        rows = epoch_order(places, self.num_rows, self.seed, epoch, self.shuffle)
        return WindowRows(epoch, step_in_epoch, rows)

    def position(self, consumed_samples: int) -> tuple[int, int]:
        """(epoch, step in that epoch) of the first window not yet trained.

        Raises UserError where `consumed_samples` is not a border between two windows of this schedule.
        """
        epoch, samples_in_epoch = divmod(consumed_samples, self.num_rows)
        step_in_epoch, rest = divmod(samples_in_epoch, self.batch_size)
        if rest:
            raise UserError(
                f"consumed_samples={consumed_samples} does not lie between two steps of {self.num_rows} samples an "
                f"epoch and {self.batch_size} samples a step. Go on with the data and batch size that it began with."
            )
        return epoch, step_in_epoch

    def num_steps_before(self, consumed_samples: int) -> int:
        """Optimizer steps taken when `consumed_samples` samples have been trained."""
        epoch, step_in_epoch = self.position(consumed_samples)
        return epoch * self.steps_per_epoch + step_in_epoch

    def windows(self, consumed_samples: int = 0, max_epochs: int | None = None) -> Iterator[WindowRows]:
        """All windows from `consumed_samples` on, to the end of epoch `max_epochs - 1` (None: for ever)."""
        epoch, step_in_epoch = self.position(consumed_samples)
        while max_epochs is None or epoch < max_epochs:
            for step in range(step_in_epoch, self.steps_per_epoch):
                yield self.window(epoch, step)
            epoch, step_in_epoch = epoch + 1, 0
