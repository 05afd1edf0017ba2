"""DPOTrainer and RewardModelTrainer: the faces of the loop over pairs of answers, with OpenRLHF's signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openrlhf.batching import ForeignLoader, StepWindow, StepWindowLoader
from openrlhf.config import DPOConfig, RMConfig, from_namespace
from openrlhf.config.pair_settings import PreferenceModelConfig, RewardModelConfig
from openrlhf.errors import UserError
from openrlhf.models import Actor, RewardModel, note_reward_statistics
from openrlhf.models.reward_statistics import forget_reward_statistics
from openrlhf.objectives import Objective, PreferenceObjective, RewardObjective
from openrlhf.objectives.pair_losses import PairLossSettings, needs_reference
from openrlhf.objectives.preference import Reference
from openrlhf.objectives.reference import (
    REFERENCE_CHOSEN,
    BaseUnderAdapters,
    ComputedReference,
    FrozenReference,
    base_is_no_reference,
)
from openrlhf.objectives.reward import RewardLoss
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.callbacks import Callback
from openrlhf.trainer.command_trainer import CommandTrainer
from openrlhf.trainer.run_identity import base_model_fingerprint, function_of_config
from openrlhf.trainer.trainer import Loader


def preference_objective(model: PreferenceModelConfig, reference: Reference | None) -> PreferenceObjective:
    """What the settings name. Raises UserError for a loss that there is not, or that lacks its reference."""
    settings = PairLossSettings(model.beta, model.label_smoothing, model.ipo_enable, model.simpo_gamma)
    return PreferenceObjective(model.losses(), settings, model.nll_loss_coef, reference)


def reward_objective(model: RewardModelConfig) -> RewardObjective:
    """What the settings name."""
    return RewardObjective(model.loss_type, model.margin_loss_enable, model.center_rewards_coef)


class _PairTrainer(CommandTrainer):
    """Reads pairs alone."""

    sequences_a_unit = 2

    def _source_of(self, dataloader: Loader, is_trained: bool) -> StepWindowLoader | ForeignLoader:
        _check_pairs(self, dataloader)
        return super()._source_of(dataloader, is_trained)


class DPOTrainer(_PairTrainer):
    """DPO, and the other losses of preferences, on pairs of answers.

    Args:
        model, optim, scheduler: what `strategy.prepare` gave back.
        ref_model: a second model, which `strategy.prepare` was given alone; None: the base under the adapters of
            `model`, or log-probs that the data set holds (`with_log_probs`).
        train_dataloader, eval_dataloader: what `strategy.setup_dataloader` gave for a `PairDataset` or
            `RewardDataset`; the latter may be None.
        tokenizer: saved with the model; its padding token fills rows.
        max_norm: the strategy clips; another value than the strategy's is an error.
        beta: strength of the tie to the reference. The rest of the loss is in `strategy.args`, and in those of `fit`.
        max_epochs: passes over the data.
        save_hf_ckpt, disable_ds_ckpt: what each save writes.
        callbacks: the user's own; None: those that `--train.callbacks` names.
        objective: what is minimised; None: the losses that `--model.loss_type` names.

    Raises UserError where the loss needs a reference and there is none, one with another vocabulary, or the base alone
    under an adapter that the model has started from.
    """

    config_class = DPOConfig
    loss_setting = "a loss of the house has a name for --model.loss_type"

    def __init__(
        self,
        model: Actor,
        ref_model: Actor | None,
        strategy: DeepspeedStrategy,
        tokenizer: Any,
        optim: Any,
        train_dataloader: StepWindowLoader,
        eval_dataloader: StepWindowLoader | None,
        scheduler: Any,
        max_norm: float | None = None,
        beta: float = 0.01,
        max_epochs: int = 2,
        save_hf_ckpt: bool = False,
        disable_ds_ckpt: bool = False,
        *,
        callbacks: Sequence[Callback] | None = None,
        objective: Objective | None = None,
    ):
        _check_pairs(self, train_dataloader, eval_dataloader)
        self._beta = beta
        self._reference = _reference_of(model, ref_model, train_dataloader)
        self._adapter = model.adapter_name_or_path
        super().__init__(
            model,
            strategy,
            optim,
            train_dataloader,
            eval_dataloader,
            scheduler,
            max_norm,
            save_hf_ckpt,
            disable_ds_ckpt,
            callbacks,
            objective or self.objective_of(from_namespace(DPOConfig, strategy.args)),
            has_own_objective=objective is not None,
            max_epochs=max_epochs,
            tokenizer=tokenizer,
        )
        if ref_model is not None:
            self.reference_fingerprint = base_model_fingerprint(ref_model.config.name_or_path or "")
            self.reference_function = function_of_config("ref.model_name_or_path", ref_model.config)

    def objective_of(self, config: DPOConfig) -> Objective:
        model = self.settings_of(config).model
        if not needs_reference(model.losses()):
            return preference_objective(model, None)
        if self._adapter is not None and isinstance(self._reference, BaseUnderAdapters):
            raise base_is_no_reference(f"The model with the adapter {self._adapter}", "ref_model")
        return preference_objective(model, self._reference)

    def settings_of(self, config: DPOConfig) -> DPOConfig:
        return replace(config, model=replace(config.model, beta=self._beta))


class RewardModelTrainer(_PairTrainer):
    """A reward model on pairs of answers. Its config keeps mean and deviation of its rewards in an evaluation.

    Those of other weights, before its training and before each step, are taken away.

    Args:
        loss: `sigmoid` or `logexp`.
        others: as of `DPOTrainer`.
    """

    config_class = RMConfig
    loss_setting = "a loss of the house has a name for --model.loss_type, here loss="

    def __init__(
        self,
        model: RewardModel,
        strategy: DeepspeedStrategy,
        optim: Any,
        train_dataloader: StepWindowLoader,
        eval_dataloader: StepWindowLoader | None,
        scheduler: Any,
        tokenizer: Any,
        max_norm: float | None = None,
        max_epochs: int = 2,
        loss: RewardLoss = "sigmoid",
        save_hf_ckpt: bool = False,
        disable_ds_ckpt: bool = False,
        *,
        callbacks: Sequence[Callback] | None = None,
        objective: Objective | None = None,
    ):
        _check_pairs(self, train_dataloader, eval_dataloader)
        forget_reward_statistics(model.config)
        self._loss, self._pairs = loss, train_dataloader.dataset
        self._has_statistics = False
        super().__init__(
            model,
            strategy,
            optim,
            train_dataloader,
            eval_dataloader,
            scheduler,
            max_norm,
            save_hf_ckpt,
            disable_ds_ckpt,
            callbacks,
            objective or self.objective_of(from_namespace(RMConfig, strategy.args)),
            has_own_objective=objective is not None,
            max_epochs=max_epochs,
            tokenizer=tokenizer,
        )

    def _evaluated(self, dataloader: Loader | None) -> dict[str, float]:
        metrics = super()._evaluated(dataloader)
        if dataloader is self.eval_dataloader and "eval_reward_mean" in metrics:  # an objective of one's own has none
            self._has_statistics = True
            note_reward_statistics(self.model.config, metrics["eval_reward_mean"], metrics["eval_reward_std"])
        return metrics

    def _advance(self, window: StepWindow) -> None:
        super()._advance(window)
        self.forget_statistics()

    def forget_statistics(self) -> None:
        """Where the weights are others now: the model's config has no numbers until these are evaluated."""
        self._has_statistics = False
        forget_reward_statistics(self.model.config)

    def note_statistics(self) -> None:
        """Mean and deviation of the rewards go into the model's config, unless this process has put them there."""
        if self.eval_dataloader is not None and not self._has_statistics:
            self.strategy.print("the exported model is evaluated, for mean and deviation of its rewards.")
            self._evaluated(self.eval_dataloader)

    def objective_of(self, config: RMConfig) -> Objective:
        model = self.settings_of(config).model
        if model.margin_loss_enable and hasattr(self._pairs, "check_margins"):  # pairs of a user's own may have none
            self._pairs.check_margins()
        return reward_objective(model)

    def settings_of(self, config: RMConfig) -> RMConfig:
        return replace(config, model=replace(config.model, loss_type=self._loss))


def _check_pairs(trainer: CommandTrainer, *loaders: Any) -> None:
    for loader in loaders:
        if loader is None or (isinstance(loader, StepWindowLoader) and hasattr(loader.dataset, "unit")):
            continue
        raise UserError(
            f"{type(trainer).__name__} has been given a loader that knows of no pairs ({type(loader).__name__}): give "
            "what strategy.setup_dataloader makes of a PairDataset or a RewardDataset, without sampler=, which makes "
            "torch's DataLoader."
        )


def _reference_of(model: Actor, ref_model: Actor | None, loader: StepWindowLoader) -> Reference | None:
    if ref_model is not None:
        check_same_vocabulary(model, ref_model)
        return FrozenReference(ref_model)
    pairs: Any = loader.dataset
    if REFERENCE_CHOSEN in pairs.unit(0).numbers:
        return ComputedReference()
    return BaseUnderAdapters() if hasattr(model.model, "peft_config") else None


def check_same_vocabulary(model: Actor, ref_model: Actor) -> None:
    """Raises UserError where the two do not score the same tokens."""
    here, there = (one.config.get_text_config().vocab_size for one in (model, ref_model))
    if here != there:
        raise UserError(
            f"The reference model has a vocabulary of {there:,} tokens, the model one of {here:,}: their log-probs "
            "cannot be compared. Give a reference with the model's vocabulary."
        )
