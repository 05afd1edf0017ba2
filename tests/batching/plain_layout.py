"""The layouts and the order, one unit and one number at a time: what the package computes by whole arrays."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from openrlhf.batching.layout import Layout
from openrlhf.batching.unit import UnitLengths


@dataclass(frozen=True)
class FixedSize:
    """At most `micro_batch_size` units a micro-batch; units of like length stand together, to pad little."""

    micro_batch_size: int

    def __call__(self, units: Sequence[UnitLengths], num_data_ranks: int) -> Layout:
        longest_first = _longest_first([max(lengths) for lengths in units])
        units_a_micro_step = self.micro_batch_size * num_data_ranks
        layout = []
        for start in range(0, len(longest_first), units_a_micro_step):
            places = longest_first[start : start + units_a_micro_step]
            layout.append([tuple(places[rank::num_data_ranks]) for rank in range(num_data_ranks)])
        return layout


@dataclass(frozen=True)
class TokenBudget:
    """At most `max_tokens` a micro-batch, padding counted where there is any; balanced over ranks by tokens."""

    max_tokens: int
    packed: bool

    def __call__(self, units: Sequence[UnitLengths], num_data_ranks: int) -> Layout:
        tokens = [sum(lengths) for lengths in units]
        num_micro_steps = max(1, -(-sum(tokens) // (self.max_tokens * num_data_ranks)))
        while (bins := self._fill(units, tokens, num_micro_steps * num_data_ranks)) is None:
            num_micro_steps += 1
        return _deal(bins, tokens, num_data_ranks)

    def _fill(self, units: Sequence[UnitLengths], tokens: list[int], num_bins: int) -> list[list[int]] | None:
        """Places of the units in each bin; None where so few bins do not hold them all."""
        return self._fill_packed(tokens, num_bins) if self.packed else self._fill_padded(units, num_bins)

    def _fill_packed(self, lengths_tokens: Sequence[int], num_bins: int) -> list[list[int]] | None:
        """Balanced where that holds the budget, else as tight as can be; None where neither does."""
        return self._balanced(lengths_tokens, num_bins) or self._tight(lengths_tokens, num_bins)

    def _balanced(self, lengths_tokens: Sequence[int], num_bins: int) -> list[list[int]] | None:
        """Longest first into the emptiest bin."""
        bins: list[list[int]] = [[] for _ in range(num_bins)]
        emptiest = [(0, number) for number in range(num_bins)]
        for place in _longest_first(lengths_tokens):
            num_tokens, number = heapq.heappop(emptiest)
            if num_tokens + lengths_tokens[place] > self.max_tokens:
                return None
            bins[number].append(place)
            heapq.heappush(emptiest, (num_tokens + lengths_tokens[place], number))
        return bins

    def _tight(self, lengths_tokens: Sequence[int], num_bins: int) -> list[list[int]] | None:
        """Longest first into the fullest bin that still has room."""
        bins: list[list[int]] = [[] for _ in range(num_bins)]
        rooms = [(self.max_tokens, number) for number in range(num_bins)]  # ascending by room
        for place in _longest_first(lengths_tokens):
            at = bisect_left(rooms, (lengths_tokens[place], -1))
            if at == len(rooms):
                return None
            room, number = rooms.pop(at)
            bins[number].append(place)
            insort(rooms, (room - lengths_tokens[place], number))
        return bins

    def _fill_padded(self, units: Sequence[UnitLengths], num_bins: int) -> list[list[int]] | None:
        """Longest first, a bin as wide as its first unit's longest sequence and as high as the budget allows."""
        bins: list[list[int]] = []
        width = height = 0
        for place in _longest_first([max(lengths) for lengths in units]):
            if not bins or (height + len(units[place])) * width > self.max_tokens:
                bins.append([])
                width, height = max(units[place]), 0
            bins[-1].append(place)
            height += len(units[place])
        if len(bins) > num_bins:
            return None
        return bins + [[] for _ in range(num_bins - len(bins))]


def _longest_first(lengths_tokens: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths_tokens)), key=lambda place: (-lengths_tokens[place], place))


def _deal(bins: list[list[int]], lengths_tokens: Sequence[int], num_data_ranks: int) -> Layout:
    """Bins to ranks: bins of like size run in the same micro-step, so that no rank waits long for another."""
    heaviest_first = sorted(bins, key=lambda one: -sum(lengths_tokens[place] for place in one))
    return [
        [tuple(one) for one in heaviest_first[start : start + num_data_ranks]]
        for start in range(0, len(heaviest_first), num_data_ranks)
    ]


def permuted(value: int, num_values: int, key: int) -> int:
    """The image of one value: eight rounds of a Feistel network, walked until they land inside."""
    half_bits = max(1, ((num_values - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = value >> half_bits, value & mask
        for number in range(8):
            left, right = right, left ^ (_mix(right ^ _mix(key ^ number)) & mask)
        value = left << half_bits | right
        if value < num_values:
            return value


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31
