"""How many tokens the data hold that a layout must have room for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openrlhf.batching.unit import UnitSizes
from openrlhf.config import DeepspeedConfig

_ROUNDED_TO = 256


@dataclass(frozen=True)
class Lengths:
    """Tokens of the data, padding counted where there is any."""

    longest: int  # of a unit
    step: int  # of nearly every step, over all ranks

    @classmethod
    def of(cls, data: Sequence[Any], batch_size: int, packed: bool) -> Lengths:
        """Args: data: the training's, and the evaluation's, or None."""
        sizes = [_unit_tokens(one, packed) for one in data if one is not None]
        trained, num_units = sizes[0], min(batch_size, len(data[0]))
        step = num_units * float(trained.mean()) + 3 * math.sqrt(num_units) * float(trained.std())
        return cls(max(int(one.max()) for one in sizes), min(math.ceil(step), num_units * int(trained.max())))

    def of_rank(self, ds: DeepspeedConfig, num_ranks: int) -> Lengths:
        """The part of a rank: units are dealt to rings, whose ranks share each of them.

        Args: num_ranks: of the whole run.
        """
        ring = ds.ring_attn_size
        num_rings = max(1, num_ranks // (ring * ds.tensor_parallel_size))
        uneven = self.longest if num_rings > 1 else 0  # ranks get like numbers of tokens, save for a unit
        step = -(-(-(-self.step // num_rings) + uneven) // ring)
        return Lengths(-(-self.longest // ring), -(-step // _ROUNDED_TO) * _ROUNDED_TO)


def _unit_tokens(data: Any, packed: bool) -> np.ndarray:
    """(U,) of each unit, alone in a micro-batch."""
    if not hasattr(data, "unit_lengths"):
        return np.asarray(data.num_tokens)
    sizes = UnitSizes.of([data.unit_lengths(row) for row in range(len(data))])
    return sizes.tokens if packed else sizes.longest * sizes.num_sequences
