"""The step window of one rank: its micro-batches, and what they hold together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openrlhf.batching.micro_batch import MicroBatch
from openrlhf.errors import UserError
from openrlhf.parallel.collectives import sum_over
from openrlhf.parallel.groups import ProcessGroups


@dataclass(frozen=True)
class WindowCounts:
    """Counts of a whole step window, over all ranks."""

    num_units_global: int
    num_tokens_global: int
    num_target_tokens_global: int
    divisor: float  # of the window's loss: the sum of what its objective weighs
    num_tokens_of_micro_step_global: tuple[int, ...]
    sums: tuple[float, ...] = ()  # of what its objective asks for besides


@dataclass(frozen=True)
class StepWindow:
    """The work of this rank for one optimizer step."""

    epoch: int
    micro_batches: list[MicroBatch]  # as many on every rank
    rows_of_micro_batches: list[list[int]] = field(default_factory=list)  # of the data set, where the loader knows
    relaid: Callable[[int, frozenset[str]], StepWindow] | None = None
    """The same units in micro-batches halved so many times, without the units of those names; of every rank alike."""
    halvings: int = 0
    num_left_out: int = 0  # units that `relaid` has left out, told by one rank; the run counts them as trained

    @property
    def unit_names(self) -> list[str]:
        return [name for micro_batch in self.micro_batches for name in micro_batch.unit_names]

    def count(
        self,
        groups: ProcessGroups,
        weight_of: Callable[[MicroBatch], float],
        sums_of: Callable[[MicroBatch], tuple[float, ...]] = lambda micro_batch: (),
    ) -> WindowCounts:
        """The counts over all ranks: one small reduction, on the CPU.

        Args:
            weight_of: what a micro-batch adds to the divisor, of the whole micro-batch also where a ring shares it.
            sums_of: likewise, for more sums.
        """
        more = [sums_of(one) for one in self.micro_batches]
        sums = self._local_sums(weight_of, [sum(column) for column in zip(*more, strict=True)])
        if groups.sequence_rank or groups.tensor_rank:
            sums.zero_()  # the ranks of a ring, and of a tensor-parallel group, hold the same units, which count once
        units, targets, divisor, *rest = sum_over(sums, groups.control).tolist()
        tokens, totals = rest[: len(self.micro_batches)], rest[len(self.micro_batches) :]
        tokens_of_micro_step = tuple(int(number) for number in tokens)
        if not math.isfinite(divisor) or divisor < 0 or (divisor == 0 and targets):
            raise UserError(
                f"the objective's weight of a step with {int(targets)} targets is {divisor}: it must be above 0."
            )
        # A window of a loader of the user's own may have no target at all; its loss is 0 whatever it is divided by.
        return WindowCounts(
            int(units), sum(tokens_of_micro_step), int(targets), divisor or 1.0, tokens_of_micro_step, tuple(totals)
        )

    def _local_sums(self, weight_of: Callable[[MicroBatch], float], more: list[float]) -> Tensor:
        sums = [
            len(self.unit_names) + self.num_left_out,
            sum(one.num_target_tokens for one in self.micro_batches),
            sum(weight_of(one) for one in self.micro_batches),
            *(one.num_tokens for one in self.micro_batches),
            *more,
        ]
        return torch.tensor(sums, dtype=torch.float64)
