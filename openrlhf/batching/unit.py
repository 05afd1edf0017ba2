"""A unit: the sequences that one row of a data set becomes. The batch size, the order and the progress count units.

Supervised fine-tuning has one sequence a unit, a preference has two (the better answer first), a group has k. The
sequences of a unit always stand in one micro-batch and, under a ring, with the same ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from torch import Tensor

UnitLengths = tuple[int, ...]  # tokens of each sequence of a unit


@dataclass(frozen=True)
class UnitSizes:
    """Sizes of U units, each (U,) int64: a window may hold a million of them."""

    tokens: np.ndarray  # of all sequences of the unit
    longest: np.ndarray  # tokens of its longest sequence
    num_sequences: np.ndarray

    @classmethod
    def of(cls, units: Sequence[UnitLengths] | np.ndarray) -> UnitSizes:
        """Args: units: the lengths of each unit; an array (U,) where every unit is one sequence."""
        if isinstance(units, np.ndarray):
            tokens = units.astype(np.int64)
            return cls(tokens, tokens, np.ones_like(tokens))
        num_sequences = np.fromiter(map(len, units), np.int64, len(units))
        lengths = np.fromiter(chain.from_iterable(units), np.int64)
        begins = np.cumsum(num_sequences) - num_sequences
        return cls(np.add.reduceat(lengths, begins), np.maximum.reduceat(lengths, begins), num_sequences)

    def at_most(self, max_tokens: int) -> UnitSizes:
        """As if no unit had more tokens, padding counted: one that has more then takes a micro-batch's whole room."""
        longest = np.minimum(self.longest, max_tokens // self.num_sequences)
        return UnitSizes(np.minimum(self.tokens, max_tokens), longest, self.num_sequences)


@dataclass(frozen=True)
class TokenSequence:
    """Token ids and the loss mask (`loss_mask[t]`: how much the log-prob of token t+1 counts)."""

    input_ids: Tensor  # (L,) int64
    loss_mask: Tensor  # (L,) any number; its last entry counts for nothing


@dataclass(frozen=True)
class Unit:
    """One row as the trainer sees it."""

    sequences: tuple[TokenSequence, ...]
    name: str  # where the row stands, for messages
    weight: float = 1.0  # how much the unit counts where each unit counts alike (--train.loss_reduction sample)
    numbers: Mapping[str, float] = field(default_factory=dict)  # of the unit, for its objective (a margin, say)
