"""SFTTrainer: the face of the loop with OpenRLHF's signature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from openrlhf.batching import StepWindowLoader
from openrlhf.config import SFTConfig
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.objectives import Objective, SFTObjective, name_of, objective_named
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.callbacks import Callback
from openrlhf.trainer.command_trainer import CommandTrainer
from openrlhf.trainer.step_size import check_batch_size


class SFTTrainer(CommandTrainer):
    """Supervised fine-tuning of an Actor on step windows.

    Args:
        model, optim, scheduler: what `strategy.prepare` gave back; the model knows the other two.
        train_dataloader: what `strategy.setup_dataloader` gave, or any iterable of this rank's micro-batches
            `(input_ids, attention_mask, loss_mask)`, each (B, S) or (B, 1, S).
        eval_dataloader: likewise, or None.
        max_norm: the strategy clips; another value than the strategy's is an error.
        pretrain_mode: every token of a loader of the user's own is a target; a data set of ours must say the same.
        batch_size: samples an optimizer step, over all ranks; another number than the strategy's is an error. With it,
            a loader of the user's own must make steps of that size.
        max_epochs: passes over the data.
        tokenizer: saved with the model; its padding token fills rows.
        save_hf_ckpt, disable_ds_ckpt: what each save writes.
        callbacks: the user's own; None: those that `--train.callbacks` names.
        objective: what is minimised; None: the one that `--train.loss` names.

    Raises UserError where `max_norm`, `batch_size` or `pretrain_mode` contradicts the strategy or the data set.
    """

    config_class = SFTConfig
    loss_setting = "or name it in the settings of fit, --train.loss module:Name"

    def __init__(
        self,
        model: Actor,
        strategy: DeepspeedStrategy,
        optim: Any,
        train_dataloader: StepWindowLoader | Iterable[Any],
        eval_dataloader: StepWindowLoader | Iterable[Any] | None,
        scheduler: Any,
        max_norm: float | None = None,
        pretrain_mode: bool = False,
        batch_size: int = 1,
        max_epochs: int = 2,
        tokenizer: Any = None,
        save_hf_ckpt: bool = False,
        disable_ds_ckpt: bool = False,
        *,
        callbacks: Sequence[Callback] | None = None,
        objective: Objective | None = None,
    ):
        _check_pretrain_mode(pretrain_mode, train_dataloader)
        check_batch_size(type(self).__name__, batch_size, strategy)
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
            objective or SFTObjective(),
            has_own_objective=objective is not None,
            batch_size=batch_size,
            max_epochs=max_epochs,
            tokenizer=tokenizer,
            all_targets=pretrain_mode,
        )

    def objective_of(self, config: SFTConfig) -> Objective:
        return objective_named(config.train.loss)

    def settings_of(self, config: SFTConfig) -> SFTConfig:
        return replace(config, train=replace(config.train, loss=name_of(self.objective)))


def _check_pretrain_mode(pretrain_mode: bool, dataloader: StepWindowLoader | Iterable[Any]) -> None:
    """A data set of ours has made its masks already."""
    made_so = getattr(getattr(dataloader, "dataset", None), "pretrain_mode", pretrain_mode)
    if made_so != pretrain_mode:
        raise UserError(
            f"SFTTrainer(pretrain_mode={pretrain_mode}) contradicts its data set, which was made with "
            f"pretrain_mode={made_so}: its loss masks hold. Give both the same value."
        )
