"""The step window of one rank: its micro-batches, and what they hold together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf.batching.micro_batch import MicroBatch
from openrlhf.parallel.collectives import sum_over
from openrlhf.parallel.groups import ProcessGroups


@dataclass(frozen=True)
class WindowCounts:
    """Counts of a whole step window, over all ranks."""

    num_samples_global: int
    num_tokens_global: int
    num_target_tokens_global: int
    target_weight_sum_global: float  # the one divisor of the loss
    num_tokens_of_micro_step_global: tuple[int, ...]


@dataclass(frozen=True)
class StepWindow:
    """What this rank computes for one optimizer step."""

    epoch: int
    micro_batches: list[MicroBatch]  # as many on every rank

    @property
    def sample_names(self) -> list[str]:
        return [name for micro_batch in self.micro_batches for name in micro_batch.sample_names]

    def count(self, groups: ProcessGroups) -> WindowCounts:
        """The counts over all ranks: one small reduction, on the CPU."""
        sums = self._local_sums()
        if groups.sequence_rank or groups.tensor_rank:
            sums.zero_()  # the ranks of a ring, and of a tensor-parallel group, hold the same samples, which count once
        samples, targets, weight, *tokens = sum_over(sums, groups.control).tolist()
        tokens_of_micro_step = tuple(int(number) for number in tokens)
        return WindowCounts(int(samples), sum(tokens_of_micro_step), int(targets), weight, tokens_of_micro_step)

    def _local_sums(self) -> Tensor:
        sums = [
            len(self.sample_names),
            sum(one.num_target_tokens for one in self.micro_batches),
            sum(one.target_weight_sum for one in self.micro_batches),
            *(one.num_tokens for one in self.micro_batches),
        ]
        return torch.tensor(sums, dtype=torch.float64)
