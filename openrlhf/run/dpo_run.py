"""A run of train_dpo: what it has of its own."""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

import xxhash

from openrlhf.config import DPOConfig
from openrlhf.models import Actor
from openrlhf.models.loading import load_config
from openrlhf.objectives import PreferenceObjective
from openrlhf.objectives.reference import BaseUnderAdapters, ComputedReference, FrozenReference
from openrlhf.parallel.collectives import gather_objects
from openrlhf.run.builders import build_actor
from openrlhf.run.pair_run import PairRun
from openrlhf.run.reference import check_reference, load_reference, reference_file, reference_name, reference_of
from openrlhf.trainer import DPOTrainer
from openrlhf.trainer.computed_reference import compute_reference, with_log_probs
from openrlhf.trainer.pair_trainers import preference_objective
from openrlhf.trainer.run_identity import base_model_fingerprint, function_of_config


class DPORun(PairRun):
    """See `TrainingRun`."""

    config: DPOConfig
    objective: PreferenceObjective

    @classmethod
    def build_objective(cls, config: DPOConfig) -> PreferenceObjective:
        check_reference(config)
        return preference_objective(config.model, reference_of(config))

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self._log_probs: dict[str, str] = {}  # that are computed before the training: see `RunIdentity`

    def build(self) -> None:
        reference = self.objective.reference
        if isinstance(reference, ComputedReference):
            self._compute_reference()
        elif isinstance(reference, FrozenReference):
            reference.use(load_reference(self.config_of_models, self.strategy))
        super().build()

    def model_names(self) -> list[str]:
        reference = reference_name(self.config)
        return [*super().model_names(), *([] if reference is None else [reference])]

    def build_model(self) -> Actor:
        return build_actor(self.config_of_models, self.strategy.get_ds_train_config())

    def trainer_of(self, **parts: Any) -> DPOTrainer:
        trainer = DPOTrainer(ref_model=None, beta=self.config.model.beta, **parts)
        trainer.reference_log_probs = self._log_probs
        name = self.config.ref.model_name_or_path  # None: the reference is the base, whose own is compared
        if name is not None and reference_name(self.config) is not None:
            config = load_config(name, self.config.model.trust_remote_code)
            trainer.reference_function = function_of_config("ref.model_name_or_path", config)
        return trainer

    def _compute_reference(self) -> None:
        """Its log-probs go into the data sets; the model, if it was needed, is gone before the training begins."""
        loaded: list[Actor] = []

        def load() -> Actor:
            if not loaded:
                loaded.append(load_reference(self.config_of_models, self.strategy))
            return loaded[0]

        def with_its_log_probs(dataset: Any) -> Any:
            with self.strategy.watchdog.long_phase("looking for the reference's log-probs"):
                file = reference_file(self.config, dataset.fingerprint) if self.strategy.is_rank_0() else None
                file = gather_objects(file, self.strategy.groups.control)[0]
            loader = self.loader(dataset, shuffle=False)
            log_probs = compute_reference(load, loader, self.strategy, file, Path(self.config.ckpt.path))
            self._log_probs[dataset.fingerprint] = xxhash.xxh3_64_hexdigest(log_probs.tobytes())
            return with_log_probs(dataset, log_probs)

        self.train_data = with_its_log_probs(self.train_data)
        self.eval_data = self.eval_data and with_its_log_probs(self.eval_data)
        self.strategy.watchdog.note("building the model", is_long=True)
        while loaded:
            loaded.pop().engine.destroy()
            gc.collect()  # engine and modules refer to one another: the weights would stay through the training

    @functools.cached_property
    def reference_fingerprint(self) -> str | None:
        name = reference_name(self.config)
        return None if name is None else base_model_fingerprint(name)

    def rows_of_start_table(self) -> dict[str, str]:
        weights = self.config.model.losses()
        mix = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items())
        loss = f"{mix}; beta {self.config.model.beta:g}"
        return {"loss": loss, "reference": self._reference(), **super().rows_of_start_table()}

    def _reference(self) -> str:
        name, reference = reference_name(self.config), self.objective.reference
        if name is None:
            return "none: the loss has none"
        if isinstance(reference, BaseUnderAdapters):
            return "the base under the adapters"
        if isinstance(reference, ComputedReference):
            return f"{name}; its log-probs are computed already"
        where = ", its weights in the host's memory" if self.config.ref.offload else ""
        return f"{name}, a second model{where}"
