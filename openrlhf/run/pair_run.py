"""A run on pairs of answers: what train_rm and train_dpo have in common; whether it computes a prompt once for both."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from transformers import PretrainedConfig

from openrlhf.batching.micro_batch import LEAST_SHARED_TOKENS, shared_tokens
from openrlhf.datasets.pair_dataset import prepare_pair_dataset
from openrlhf.datasets.pair_numbers import PairsWithNumbers, subsets_of
from openrlhf.engine.devices import usable_device_type
from openrlhf.errors import UserError
from openrlhf.models.attention.flash import TORCH_VARLEN_CAPABILITIES, beyond_gpu
from openrlhf.models.attention.ring import RING
from openrlhf.models.limits import check_ring_dropout
from openrlhf.models.loading import load_config
from openrlhf.objectives.pairs import SUBSET, PairObjective
from openrlhf.run.builders import Prepare, eval_settings
from openrlhf.run.training_run import TrainingRun
from openrlhf.trainer import CommandTrainer

_PAIRS_LOOKED_AT = 256
_LEAST_SAVED = 0.1  # of the tokens: merging blocks of attention costs more than it saves below


class SharedPrompts(NamedTuple):
    """Whether prompts are shared, and what the start table says of it."""

    are_on: bool
    words: str


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

    def choose_layout(self) -> None:
        super().choose_layout()
        self.__dict__.pop("shared_prompts", None)  # which only packs can: what packed may be padded now

    def check_layout_of(self, trainer: CommandTrainer) -> None:
        super().check_layout_of(trainer)
        if self.shared_prompts.are_on:
            trainer.model.check_layout(True, self.strategy.groups.sequence, shares_prompts=True)

    def loader(self, dataset: Any, shuffle: bool, **layout: Any) -> Any:
        return super().loader(dataset, shuffle, shares_prompts=self.shared_prompts.are_on, **layout)

    def rows_of_start_table(self) -> dict[str, str]:
        return {"prompts": self.shared_prompts.words}

    @classmethod
    def preparation(cls, config: Any) -> Prepare:
        return prepare_pair_dataset


def shared_prompts(config: Any, models: list[PretrainedConfig], pairs: Any) -> SharedPrompts:
    """Args:
    config: of a command that trains on pairs.
    models: all that compute the pairs.
    pairs: as of `PairDataset`.
    """
    reason = next(_reasons_against(config, models), None)
    saved = 0.0 if reason else _saved(pairs)
    if reason is None and saved < _LEAST_SAVED:
        short = f"prompts of fewer than {LEAST_SHARED_TOKENS} tokens never are shared"
        reason = f"once would save {saved:.1%} of the tokens ({short})"
    if reason is not None:
        return SharedPrompts(False, f"computed with each answer: {reason}")
    return SharedPrompts(True, f"computed once for both answers, which saves {saved:.0%} of the tokens")


def _reasons_against(config: Any, models: list[PretrainedConfig]) -> Iterator[str]:
    ds = config.ds
    if not ds.share_prompts:
        yield "--ds.share_prompts false"
    if not ds.packing_samples:
        yield "samples are not packed"
    if ds.attn_implementation not in ("auto", RING):
        yield f"--ds.attn_implementation {ds.attn_implementation}"
    if config.model.aux_loss_coef:
        yield "the load-balancing loss counts a prompt's tokens as often as they stand there"
    if usable_device_type() == "cuda" and ds.param_dtype == "fp32":
        yield "float32 on CUDA"
    if usable_device_type() == "cuda" and (reason := beyond_gpu(TORCH_VARLEN_CAPABILITIES)):
        yield f"flash attention: {reason}"
    for model in models:
        if any(kind == "longrope" or "dynamic" in kind for kind in _rope_kinds(model)):
            yield "the model's positions depend on a sample's length"
        try:
            check_ring_dropout(model)
        except UserError:
            yield "the model drops attention weights"


def _rope_kinds(model: PretrainedConfig) -> Iterator[str]:
    """Of rotary embeddings; of a model that has several, one for each type of layer."""
    parameters: Mapping[str, Any] = getattr(model.get_text_config(), "rope_parameters", None) or {}
    for one in (parameters, *parameters.values()):
        if isinstance(one, Mapping) and "rope_type" in one:
            yield str(one["rope_type"])


def _saved(pairs: Any) -> float:
    """The share of the tokens that need not be computed; of some pairs from all over the data."""
    rows = np.linspace(0, len(pairs) - 1, min(len(pairs), _PAIRS_LOOKED_AT)).astype(int).tolist()
    num_saved = sum(shared_tokens(pairs.unit(row)) for row in rows)
    return num_saved / sum(sum(pairs.unit_lengths(row)) for row in rows)
