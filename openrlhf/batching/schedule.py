"""The rows of each step: step windows along the run, a pure function of (number of rows, batch size, seed).

Step k of epoch e trains exactly the rows `epoch_order(...)[k * batch_size : (k + 1) * batch_size]`. The last window of
an epoch may be smaller; no row is dropped, none is trained twice in an epoch, none crosses an epoch.

The order of an epoch is computed for each place and held nowhere: `permute` is a keyed bijection of [0, num_rows), a
balanced Feistel network over the next power of four, walked until it lands inside (cycle walking; Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", CT-RSA 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from openrlhf.errors import UserError

_NUM_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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

    def num_steps(self, max_epochs: int, max_steps: int | None = None) -> int:
        """Optimizer steps of a whole run."""
        num_steps = self.steps_per_epoch * max_epochs
        return num_steps if max_steps is None else min(num_steps, max_steps)

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


def epoch_order(places: np.ndarray, num_rows: int, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """The rows that stand at `places` of an epoch; a function of (num_rows, seed, epoch) alone.

    Args:
        places: (n,) integers in [0, num_rows).
    Returns: (n,) int64 rows.
    """
    if not shuffle or num_rows < 2:
        return np.asarray(places).astype(np.int64)
    return permute(places, num_rows, _key(seed, epoch))


def permute(values: np.ndarray, num_values: int, key: np.uint64) -> np.ndarray:
    """The images of `values` under the permutation of [0, num_values) that `key` names; (n,) int64."""
    half_bits = max(1, ((num_values - 1).bit_length() + 1) // 2)
    rounds = _rounds(half_bits, key, is_tabled=len(values) >= 1 << half_bits)
    images = _feistel(np.asarray(values).astype(np.int64), half_bits, rounds)
    outside = np.flatnonzero(images >= num_values)
    while len(outside):
        walked = images[outside] = _feistel(images[outside], half_bits, rounds)
        outside = outside[walked >= num_values]
    return images


def _key(seed: int, epoch: int) -> np.uint64:
    return np.uint64(_mix(_mix(np.uint64(seed % 2**64)) ^ np.uint64(epoch))[()])


_Round = Callable[[np.ndarray], np.ndarray]
"""Halves of values → what the other halves are changed by; (n,) int64 below 2**half_bits."""


def _rounds(half_bits: int, key: np.uint64, is_tabled: bool) -> list[_Round]:
    """The rounds of the network. There are few halves: for many values a table of them all takes half the time."""
    round_keys = [_mix(np.uint64(key) ^ np.uint64(number)) for number in range(_NUM_ROUNDS)]
    mask = np.uint64((1 << half_bits) - 1)
    rounds: list[_Round] = [partial(_changes, round_key=round_key, mask=mask) for round_key in round_keys]
    return [one(np.arange(1 << half_bits)).__getitem__ for one in rounds] if is_tabled else rounds


def _changes(halves: np.ndarray, round_key: np.ndarray, mask: np.uint64) -> np.ndarray:
    return (_mix(halves.astype(np.uint64) ^ round_key) & mask).astype(np.int64)


def _feistel(values: np.ndarray, half_bits: int, rounds: list[_Round]) -> np.ndarray:
    left, right = values >> half_bits, values & ((1 << half_bits) - 1)
    for changes_of in rounds:
        left, right = right, left ^ changes_of(right)
    return (left << half_bits) | right


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every input bit moves every output bit."""
    with np.errstate(over="ignore"):
        value = np.asarray(value, dtype=np.uint64) + _GOLDEN
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(value ^ (value >> np.uint64(31)))
