"""The layout of a step window: the rank and the micro-batch that compute each of its units.

Every rank computes the same layout from the same lengths, so all ranks run the same number of micro-batches and
collectives always match. A layout is `layout[micro_step][data_rank]`: a tuple of places of units in the window, maybe
empty. A window may hold a million units, so places are dealt by whole arrays (`docs/scale.md`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openrlhf.batching.unit import UnitLengths, UnitSizes
from openrlhf.errors import UserError

Layout = list[list[tuple[int, ...]]]
Units = Sequence[UnitLengths] | np.ndarray
"""The lengths of each unit of a window; an array (U,) where every unit is one sequence."""


@dataclass(frozen=True)
class _Bins:
    """Bins of units: bin `micro_step * num_data_ranks + data_rank` is a micro-batch."""

    places: np.ndarray  # (U,) of bin after bin
    borders: np.ndarray  # (number of bins + 1,) in `places`

    @classmethod
    def of(cls, order: np.ndarray, bin_of: np.ndarray, num_bins: int) -> _Bins:
        """Args: order: (U,) places of units. bin_of: (U,) the bin of each of them, which they enter in that order."""
        sizes = np.bincount(bin_of, minlength=num_bins)
        return cls(order[_stable_order(bin_of)], np.concatenate([[0], np.cumsum(sizes)]))

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, number: int) -> tuple[int, ...]:
        return tuple(self.places[self.borders[number] : self.borders[number + 1]].tolist())


class _DealsBins(ABC):
    """What the layouts have in common: bins, dealt to the ranks in turn."""

    def __call__(self, units: Units, num_data_ranks: int) -> Layout:
        """The micro-batches of all ranks; see the module's head."""
        bins = self._bins(UnitSizes.of(units), num_data_ranks)
        return [[bins[first + rank] for rank in range(num_data_ranks)] for first in range(0, len(bins), num_data_ranks)]

    def of_rank(self, units: Units, num_data_ranks: int, data_rank: int) -> list[tuple[int, ...]]:
        """The micro-batches of one rank: `[step[data_rank] for step in layout(units, num_data_ranks)]`."""
        bins = self._bins(UnitSizes.of(units), num_data_ranks)
        return [bins[number] for number in range(data_rank, len(bins), num_data_ranks)]

    @abstractmethod
    def _bins(self, units: UnitSizes, num_data_ranks: int) -> _Bins: ...


@dataclass(frozen=True)
class FixedSize(_DealsBins):
    """At most `micro_batch_size` units a micro-batch; units of like length stand together, to pad little."""

    micro_batch_size: int

    def halved(self, times: int) -> FixedSize:
        """Micro-batches of half the size, so many times, down to one unit."""
        return FixedSize(max(1, self.micro_batch_size >> times))

    def _bins(self, units: UnitSizes, num_data_ranks: int) -> _Bins:
        order = _longest_first(units.longest)
        turn = np.arange(len(order))
        micro_step = turn // (self.micro_batch_size * num_data_ranks)
        bin_of = micro_step * num_data_ranks + turn % num_data_ranks
        return _Bins.of(order, bin_of, _multiple(int(bin_of.max()) + 1, num_data_ranks))


@dataclass(frozen=True)
class TokenBudget(_DealsBins):
    """At most `max_tokens` a micro-batch, padding counted where there is any; balanced over ranks by tokens.

    Calls raise UserError where one unit alone is longer than the budget, unless `longer_alone` gives such a unit a
    micro-batch of its own.
    """

    max_tokens: int
    packed: bool
    longer_alone: bool = False

    def halved(self, times: int) -> TokenBudget:
        """Half the budget, so many times, down to one unit a micro-batch."""
        return TokenBudget(max(1, self.max_tokens >> times), self.packed, longer_alone=True) if times else self

    def _bins(self, units: UnitSizes, num_data_ranks: int) -> _Bins:
        if self.longer_alone:
            room = max(self.max_tokens, int(units.num_sequences.max()))
            return TokenBudget(room, self.packed)._bins(units.at_most(room), num_data_ranks)
        largest = int((units.tokens if self.packed else units.longest * units.num_sequences).max())
        if largest > self.max_tokens:
            raise UserError(
                f"a sample of {largest} tokens does not fit --train.max_tokens_per_micro_batch "
                f"{self.max_tokens}: raise the budget, or lower --data.max_len."
            )
        num_bins = -(-int(units.tokens.sum()) // self.max_tokens)
        order, bin_of, num_bins = (self._packed if self.packed else self._padded)(units, num_bins, num_data_ranks)
        # Bins of like size run in the same micro-step, so that no rank waits long for another.
        loads_tokens = np.bincount(bin_of, weights=units.tokens[order], minlength=num_bins).astype(np.int64)
        turn = np.empty(num_bins, np.int64)
        turn[_longest_first(loads_tokens)] = np.arange(num_bins)
        return _Bins.of(order, turn[bin_of], num_bins)

    # Both are given a number of bins below which no filling holds all units. They return the units in the order in
    # which they are placed, the bin of each, and the number of bins: a multiple of the ranks.

    def _packed(self, units: UnitSizes, num_bins: int, num_data_ranks: int) -> tuple[np.ndarray, np.ndarray, int]:
        order = _longest_first(units.tokens)
        lengths_tokens = units.tokens[order]
        # A bin holds so many of the units up to the n-th, the shortest of them: a bound that saves most tries.
        most_in_a_bin = self.max_tokens // np.maximum(lengths_tokens, 1)
        num_bins = max(num_bins, int((-(-np.arange(1, len(order) + 1) // most_in_a_bin)).max()))
        num_bins = _multiple(num_bins, num_data_ranks)
        while (bin_of := _filled_packed(lengths_tokens, num_bins, self.max_tokens)) is None:
            num_bins += num_data_ranks
        return order, bin_of, num_bins

    def _padded(self, units: UnitSizes, num_bins: int, num_data_ranks: int) -> tuple[np.ndarray, np.ndarray, int]:
        order = _longest_first(units.longest)
        bin_of = _filled_row_by_row(units.longest[order], units.num_sequences[order], self.max_tokens)
        return order, bin_of, _multiple(max(num_bins, int(bin_of[-1]) + 1), num_data_ranks)


def layout_of(
    micro_batch_size: int, max_tokens_per_micro_batch: int | None, ring_attn_size: int, packed: bool
) -> FixedSize | TokenBudget:
    """The layout that the settings of a run ask for.

    Args:
        max_tokens_per_micro_batch: tokens a rank computes at once. The ranks of a ring share a micro-batch, so that it
            holds as many tokens from each of them. None: micro-batches of `micro_batch_size` samples.
    """
    if max_tokens_per_micro_batch is None:
        return FixedSize(micro_batch_size)
    return TokenBudget(max_tokens_per_micro_batch * ring_attn_size, packed)


@dataclass(frozen=True)
class StepLayout:
    """A way to compute a step window that a run may choose; it changes no result."""

    max_tokens: int  # a rank computes at once
    recomputes: bool = False  # activations, in the backward pass

    def __str__(self) -> str:
        return f"{self.max_tokens:,} tokens a micro-batch" + (", activations recomputed" if self.recomputes else "")


# --- filling bins, longest unit first: the bin of each unit, or None where so few bins do not hold them all ----------


def _filled_packed(lengths_tokens: np.ndarray, num_bins: int, max_tokens: int) -> np.ndarray | None:
    """Balanced where that holds the budget, else as tight as can be; None where neither does."""
    balanced = _filled_balanced(lengths_tokens, num_bins, max_tokens)
    return _filled_tight(lengths_tokens, num_bins, max_tokens) if balanced is None else balanced


def _filled_balanced(lengths_tokens: np.ndarray, num_bins: int, max_tokens: int) -> np.ndarray | None:
    """Each unit into the emptiest bin; of equal ones into the first."""
    # A bin's key is load * num_bins + number, so that sorted keys are bins in the order in which they are to be filled.
    # The next units go to the next bins of that order, all at once, up to the first bin that is fuller than one of
    # those just filled. Then the keys are sorted anew.
    keys = np.arange(num_bins)
    bin_of, begin = np.empty(len(lengths_tokens), np.int64), 0
    while begin < len(bin_of):
        filled = keys[: len(bin_of) - begin] + lengths_tokens[begin : begin + num_bins] * num_bins
        is_emptier_before = keys[1 : len(filled)] > np.minimum.accumulate(filled)[:-1]
        num_units = int(is_emptier_before.argmax()) + 1 if is_emptier_before.any() else len(filled)
        if int(filled[:num_units].max()) // num_bins > max_tokens:
            return None
        bin_of[begin : begin + num_units] = keys[:num_units] % num_bins
        keys = np.sort(np.concatenate([filled[:num_units], keys[num_units:]]))
        begin += num_units
    return bin_of


def _filled_tight(lengths_tokens: np.ndarray, num_bins: int, max_tokens: int) -> np.ndarray | None:
    """Each unit into the fullest bin that still has room; of equal ones into the first."""
    # A bin that takes one unit is fuller than the others, so it takes all the units of that length that it has room
    # for, and then the next bin does: units of one length are placed together, and bins of one room.
    open_bins = _OpenBins(num_bins, max_tokens, shortest_tokens=int(lengths_tokens[-1]))
    bins: list[int] = []
    numbers_taken: list[int] = []
    for length, number in _runs(lengths_tokens):
        while number:
            room = open_bins.least_room(length)
            if room is None:
                return None
            most = min(room // max(length, 1), number)
            numbers = open_bins.take(room, number // most)
            open_bins.put(room - most * length, numbers)
            bins += numbers
            numbers_taken += [most] * len(numbers)
            number -= most * len(numbers)
    return np.repeat(bins, numbers_taken)


class _OpenBins:
    """The numbers of bins by the room that they have left; those too full for the shortest unit are forgotten."""

    def __init__(self, num_bins: int, max_tokens: int, shortest_tokens: int):
        self._shortest_tokens = shortest_tokens
        self._rooms = [max_tokens]  # ascending
        self._numbers = {max_tokens: list(range(num_bins - 1, -1, -1))}  # falling: the first is taken from the end

    def least_room(self, length: int) -> int | None:
        """Of the bins that hold so many tokens more, the room of the fullest."""
        at = bisect_left(self._rooms, length)
        return self._rooms[at] if at < len(self._rooms) else None

    def take(self, room: int, number: int) -> list[int]:
        """The first bins of that room, at most `number`."""
        numbers = self._numbers[room]
        taken = numbers[: -number - 1 : -1]
        del numbers[-number:]
        if not numbers:
            del self._numbers[room], self._rooms[bisect_left(self._rooms, room)]
        return taken

    def put(self, room: int, numbers: list[int]) -> None:
        if room in self._numbers:
            self._numbers[room] = sorted(self._numbers[room] + numbers, reverse=True)
        elif room >= self._shortest_tokens:
            insort(self._rooms, room)
            self._numbers[room] = numbers[::-1]


def _filled_row_by_row(widths_tokens: np.ndarray, num_sequences: np.ndarray, max_tokens: int) -> np.ndarray:
    """A bin after the other, each as wide as its first unit's longest sequence and as high as the budget allows."""
    heights = np.concatenate([[0], np.cumsum(num_sequences)])  # of a bin that held all the units before
    num_rows = max_tokens // np.maximum(widths_tokens, 1)
    unit_at_height = np.append(np.repeat(np.arange(len(widths_tokens)), num_sequences), len(widths_tokens))
    first_beyond = unit_at_height[np.minimum(heights[:-1] + num_rows, heights[-1])].tolist()
    begins = [0]
    while (begin := first_beyond[begins[-1]]) < len(first_beyond):
        begins.append(begin)
    return np.repeat(np.arange(len(begins)), np.diff([*begins, len(first_beyond)]))


def _multiple(number: int, of: int) -> int:
    """The least multiple that is not below `number`."""
    return -(-number // of) * of


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Each value and how often it stands there in a row."""
    begins = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    numbers = np.diff(np.concatenate([begins, [len(values)]]))
    return list(zip(values[begins].tolist(), numbers.tolist(), strict=True))


def _longest_first(lengths_tokens: np.ndarray) -> np.ndarray:
    """Places by falling length; of equal ones the first place first."""
    return _stable_order(lengths_tokens.max() - lengths_tokens)


def _stable_order(keys: np.ndarray) -> np.ndarray:
    """`argsort(keys, kind="stable")` of keys from 0 on; 16 bits at a time, which numpy sorts several times faster."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    for shift in range(16, int(keys.max()).bit_length(), 16):
        order = order[np.argsort((keys[order] >> shift).astype(np.uint16), kind="stable")]
    return order
