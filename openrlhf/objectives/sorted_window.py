"""What `aot` compares: the margins of policy and reference, each sorted over a step window, a pair by its weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SortedComparisons:
    """Of the U pairs of a micro-batch with the reference's margins at their places; (S,) each, S >= U.

    Attributes:
        pair: number of the pair, from 0 to U - 1.
        reference: the margin beside it.
        share: the part of the pair's weight that stands there; those of a pair add up to 1.
    """

    pair: Tensor
    reference: Tensor
    share: Tensor


def sorted_comparisons(
    policy: Tensor, reference: Tensor, weights: Tensor, first: int, num_pairs: int
) -> SortedComparisons:
    """Those of `num_pairs` pairs from `first` on. Args: policy, reference, weights: of all pairs of the window.

    A pair takes as much of either row as it weighs, as if it stood there so often. So pairs whose margins are the same,
    or differ by a rounding, may stand in any order: together they are compared with the same margins.
    """
    by_policy, by_reference = policy.argsort(), reference.argsort()
    ends, ends_of_reference = weights[by_policy].cumsum(0), weights[by_reference].cumsum(0)
    both_end = torch.minimum(ends[-1:], ends_of_reference[-1:])  # apart by rounding; empty where no pair is left
    borders = torch.cat([ends, ends_of_reference]).sort().values.clamp(max=both_end)
    lengths = borders.diff(prepend=borders.new_zeros(1))
    pair = by_policy[torch.searchsorted(ends, borders)]
    beside = reference[by_reference[torch.searchsorted(ends_of_reference, borders)]]
    is_mine = (lengths > 0) & (pair >= first) & (pair < first + num_pairs)
    return SortedComparisons(pair[is_mine] - first, beside[is_mine], (lengths / weights[pair])[is_mine])
