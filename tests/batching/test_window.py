"""A window's counts are those of all ranks, each sample once; two ranks with torch.distributed alone."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch

from openrlhf.batching import StepWindow, TokenSequence, Unit, make_micro_batch
from openrlhf.errors import UserError
from openrlhf.parallel.groups import alone


def counts_on_this_rank(sequence_size: int):
    """Rank r holds r + 1 samples of 4 tokens and 2 targets; ranks of a ring hold the same sample."""
    from openrlhf.parallel.groups import make_process_groups

    groups = make_process_groups(sequence_size, 1, timedelta(seconds=60))
    unit = Unit((TokenSequence(torch.tensor([5, 6, 7, 8]), torch.tensor([0, 1, 1, 0])),), "a row")
    micro_batch = make_micro_batch([unit] * (groups.data_rank + 1), packed=True)
    window = StepWindow(0, [micro_batch.share(groups.sequence_rank, groups.sequence_size)])
    counts = window.count(groups, lambda batch: batch.target_weight_sum)
    return counts.num_units_global, counts.num_tokens_global, counts.divisor


@pytest.mark.parametrize(("sequence_size", "expected"), [(1, (3, 12, 6.0)), (2, (1, 4, 2.0))], ids=["data", "ring"])
def test_counts_are_of_all_ranks_and_a_ring_counts_once(two_ranks, sequence_size, expected):
    assert two_ranks.run(counts_on_this_rank, sequence_size) == [expected] * 2


@pytest.mark.parametrize("weight", [-2.0, 0.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_above_0_is_refused(weight: float):
    unit = Unit((TokenSequence(torch.tensor([5, 6, 7]), torch.tensor([0, 1, 0])),), "a row")
    window = StepWindow(0, [make_micro_batch([unit], packed=True)])
    with pytest.raises(UserError, match="the objective's weight of a step with 1 targets is .*: it must be above 0"):
        window.count(alone(), lambda batch: weight)
