"""A run on pairs of answers: what train_rm and train_dpo have in common."""

from __future__ import annotations

from typing import Any

from openrlhf.datasets.pair_dataset import prepare_pair_dataset
from openrlhf.datasets.pair_numbers import PairsWithNumbers, subsets_of
from openrlhf.objectives.pairs import SUBSET, PairObjective
from openrlhf.run.builders import Prepare, eval_settings
from openrlhf.run.training_run import TrainingRun


class PairRun(TrainingRun):
    """See `TrainingRun`."""

    objective: PairObjective

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        key = self.config.eval.subset_key
        if self.eval_data is not None and key is not None:
            names, places = subsets_of(self.eval_data, eval_settings(self.config), key)
            self.objective.tell_apart(names)
            self.eval_data = PairsWithNumbers(self.eval_data, {SUBSET: places})

    @classmethod
    def preparation(cls, config: Any) -> Prepare:
        return prepare_pair_dataset
