"""A run on pairs of answers: what train_rm and train_dpo have in common."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from openrlhf.datasets.pair_dataset import prepare_pair_dataset
from openrlhf.datasets.pair_numbers import PairsWithNumbers, subsets_of
from openrlhf.models.attention.ring import RING
from openrlhf.models.loading import load_config
from openrlhf.objectives.pairs import SUBSET, PairObjective
from openrlhf.run.builders import Prepare, eval_settings
from openrlhf.run.shared_prompts import SharedPrompts, shared_prompts
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

    @functools.cached_property
    def shared_prompts(self) -> SharedPrompts:
        """Whether a prompt is computed once for both answers."""
        trust = self.config.model.trust_remote_code
        models = [load_config(name, trust) for name in self.model_names()]
        return shared_prompts(self.config, models, self.train_data)

    def model_names(self) -> list[str]:
        """Of all models that compute the pairs."""
        return [self.config.model.model_name_or_path]

    @property
    def config_of_models(self) -> Any:
        """The settings by which models are built: shared prompts have an attention of their own."""
        if not self.shared_prompts.are_on:
            return self.config
        return replace(self.config, ds=replace(self.config.ds, attn_implementation=RING))

    def build(self) -> None:
        super().build()
        if self.shared_prompts.are_on:  # looked at now, and not at the first step
            self.trainer.model.check_layout(True, self.strategy.groups.sequence, shares_prompts=True)

    def loader(self, dataset: Any, shuffle: bool, **layout: Any) -> Any:
        return super().loader(dataset, shuffle, shares_prompts=self.shared_prompts.are_on, **layout)

    def rows_of_start_table(self) -> dict[str, str]:
        return {"prompts": self.shared_prompts.words}

    @classmethod
    def preparation(cls, config: Any) -> Prepare:
        return prepare_pair_dataset
