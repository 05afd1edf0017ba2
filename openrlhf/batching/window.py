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


@dataclass(frozen=True)
class StepWindow:
    """What this rank computes for one optimizer step."""

    epoch: int
    micro_batches: list[MicroBatch]  # as many on every rank

    def count(self, groups: ProcessGroups) -> WindowCounts:
        """The counts over all ranks: one small reduction over the ranks that read different data (on the CPU)."""
        sums = sum_over(self._local_sums(reads=groups.sequence_rank == 0 and groups.tensor_rank == 0), groups.control)
        samples, tokens, targets, weight = sums.tolist()
        return WindowCounts(int(samples), int(tokens), int(targets), weight)

    def _local_sums(self, reads: bool) -> Tensor:
        """Zeros unless this rank `reads`: the ranks of a ring hold the same samples, which count once."""
        sums = [
            sum(len(one.sample_names) for one in self.micro_batches),
            sum(one.num_tokens for one in self.micro_batches),
            sum(one.num_target_tokens for one in self.micro_batches),
            sum(one.target_weight_sum for one in self.micro_batches),
        ]
        return torch.tensor(sums, dtype=torch.float64) * reads
