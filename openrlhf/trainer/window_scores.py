"""What an objective asks to know of a whole step window before the loss of any of its units is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from openrlhf.batching import MicroBatch, StepWindow, WindowCounts
from openrlhf.objectives import NOTHING_OF_THE_WINDOW, Objective, Scorer, WindowScores
from openrlhf.parallel.collectives import gather_objects
from openrlhf.parallel.groups import ProcessGroups
from openrlhf.trainer.shortage import compute_together

ScorerOf = Callable[[MicroBatch, int, WindowScores], Scorer]  # of a micro-batch and its number in the window


def window_scores(
    objective: Objective,
    window: StepWindow,
    counts: WindowCounts,
    groups: ProcessGroups,
    scorer_of: ScorerOf,
    throw_away: Callable[[], None] = lambda: None,
    shares_weights: bool = False,
) -> list[WindowScores]:
    """For each micro-batch of this rank. Collective, and one forward pass more, where `needs_unit_scores` is set.

    Args:
        scorer_of: draws the random numbers that the training pass of the micro-batch will draw.
        throw_away, shares_weights: as of `compute_together`.
    Raises OutOfMemory where memory ran out on any rank.
    """
    if not objective.needs_unit_scores:
        return [WindowScores(counts.sums)] * len(window.micro_batches)
    mine: list[Tensor] = []

    def compute(number: int, micro_batch: MicroBatch) -> None:
        mine.append(_unit_scores(objective, scorer_of, micro_batch, number))

    with torch.no_grad():
        compute_together(window, compute, groups, lambda: "first pass over the window", throw_away, shares_weights)
    # The ranks of a ring, and of a tensor-parallel group, hold the same units: one of them is taken.
    by_data_rank = dict(gather_objects((groups.data_rank, torch.cat(mine)), groups.control))
    everyone = torch.cat([by_data_rank[rank] for rank in range(groups.data_size)])
    before = sum(len(by_data_rank[rank]) for rank in range(groups.data_rank))
    firsts = [before + sum(len(scores) for scores in mine[:number]) for number in range(len(mine))]
    return [WindowScores(counts.sums, everyone, first) for first in firsts]


def _unit_scores(objective: Objective, scorer_of: ScorerOf, micro_batch: MicroBatch, number: int) -> Tensor:
    scorer = scorer_of(micro_batch, number, NOTHING_OF_THE_WINDOW)
    return objective.unit_scores(scorer, scorer.batch).double().cpu()
