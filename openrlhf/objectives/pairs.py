"""What objectives of pairs have in common: a pair is a unit, and an evaluation looks at its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from openrlhf.batching import MicroBatch
from openrlhf.batching.micro_batch import to_device
from openrlhf.objectives.objective import Amount, Objective

Sums = dict[str, tuple[Amount, Amount]]  # by name, a sum over pairs and the count that it is divided by

SUBSET = "subset"  # number of a unit: which of the named subsets its row is of
_LONGER = "longer_is_better"


class PairObjective(Objective):
    """A unit is a pair: the chosen answer's sequence, then the rejected one's.

    Evaluations have besides: `longer_is_better_accuracy`, that of a model that prefers the answer with more tokens; the
    accuracy of each subset, its name behind a slash.
    """

    accuracy: ClassVar[str]  # the metric that says how often the chosen answer has the higher reward

    def __init__(self, more_eval_sums: Sequence[str] = ()):
        """Args: more_eval_sums: names of sums that a subclass adds to evaluations."""
        self._more_eval_sums = tuple(more_eval_sums)
        self.tell_apart(())

    def tell_apart(self, subsets: Sequence[str]) -> None:
        """Names the parts of the evaluation; a unit's number `subset` is the place of its own among them."""
        self._subsets = tuple(subsets)
        self.eval_sums = (_LONGER, *self._more_eval_sums, *map(_correct_in, subsets))

    def weight(self, batch: MicroBatch) -> float:
        return batch.unit_weight_sum

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        of_subsets = {f"{self.accuracy}/{name}": means[_correct_in(name)] for name in self._subsets}
        return {"longer_is_better_accuracy": means[_LONGER]} | of_subsets

    def sums_of_parts(self, batch: MicroBatch, difference: Tensor) -> Sums:
        """The sums of an evaluation that every objective of pairs has.

        Args: difference: (U,) the chosen answer's reward less the rejected one's; equal rewards are no success.
        """
        tokens = batch.targets_of_sequences
        num_longer = sum(a > b for a, b in zip(tokens[::2], tokens[1::2], strict=True))
        sums: Sums = {_LONGER: (num_longer, len(difference))}
        of = batch.unit_numbers.get(SUBSET)  # a row of the training has none
        for place, name in enumerate(self._subsets):
            is_in = torch.zeros_like(difference) if of is None else (of == place).to(difference)
            sums[_correct_in(name)] = ((is_in * (difference > 0)).sum(), is_in.sum())
        return sums


def beside_the_pass(numbers: Sequence[float], batch: MicroBatch) -> Tensor:
    """The numbers as float64 on the micro-batch's device, without waiting for the passes that it has begun."""
    return to_device(torch.tensor(numbers, dtype=torch.float64), batch.target_ids.device)


def _correct_in(subset: str) -> str:
    return f"correct_in/{subset}"
