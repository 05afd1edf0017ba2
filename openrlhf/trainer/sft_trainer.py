"""SFTTrainer: the face of the loop with OpenRLHF's signature."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from openrlhf.batching import StepWindowLoader
from openrlhf.checkpoint.identity import RunIdentity, model_shape
from openrlhf.checkpoint.lease import owning_together
from openrlhf.config import SFTConfig, from_namespace
from openrlhf.datasets.fingerprint import tokenizer_fingerprint
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.objectives import AuxLossSettings, Objective, SFTObjective, name_of, objective_named
from openrlhf.parallel.agreement import check_agreement
from openrlhf.parallel.collectives import gather_objects
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.strategy.rank_facts import facts_of_config
from openrlhf.trainer.callbacks import Callback
from openrlhf.trainer.callbacks.standard import callbacks_named, standard_callbacks
from openrlhf.trainer.run_identity import base_model_fingerprint, run_identity
from openrlhf.trainer.trainer import Trainer


class SFTTrainer(Trainer):
    """Supervised fine-tuning of an Actor on step windows.

    Args:
        model, optim, scheduler: what `strategy.prepare` gave back; the model knows the other two.
        train_dataloader: what `strategy.setup_dataloader` gave, or any iterable of this rank's micro-batches
            `(input_ids, attention_mask, loss_mask)`, each (B, S) or (B, 1, S).
        eval_dataloader: likewise, or None.
        max_norm: the strategy clips; another value than the strategy's is an error.
        pretrain_mode: every token of a loader of the user's own is a target; a data set of ours must say the same.
        batch_size: samples an optimizer step, over all ranks; cuts a loader of the user's own into steps.
        max_epochs: passes over the data.
        tokenizer: saved with the model; its padding token fills rows.
        save_hf_ckpt, disable_ds_ckpt: what each save writes.
        callbacks: the user's own; None: those that `--train.callbacks` names.
        objective: what is minimised; None: the one that `--train.loss` names.

    Raises UserError where `max_norm` or `pretrain_mode` contradicts the strategy or the data set.
    """

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
        for callback in callbacks or ():
            if not isinstance(callback, Callback):
                raise UserError(
                    f"SFTTrainer(callbacks=) has {callback!r}, which is no object of a Callback's subclass."
                )
        _check_max_norm(max_norm, strategy)
        _check_pretrain_mode(pretrain_mode, train_dataloader)
        super().__init__(
            model,
            strategy,
            train_dataloader,
            eval_dataloader,
            objective or SFTObjective(),
            batch_size=batch_size,
            max_epochs=max_epochs,
            tokenizer=tokenizer,
            callbacks=callbacks,
            all_targets=pretrain_mode,
        )
        self.optimizer = optim
        self.scheduler = scheduler
        self.save_hf_ckpt = save_hf_ckpt
        self.disable_ds_ckpt = disable_ds_ckpt
        self._has_own_objective = objective is not None
        self._run_id: str | None = None

    def fit(self, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> None:
        """Trains to the end of the last epoch.

        Args:
            args: a configuration, or any object with the names of the command line, nested or flat; a missing name has
                its default.
            consumed_samples: where the data stream stands (0, or what `strategy.load_ckpt` gave back).
            num_update_steps_per_epoch: for the time left; needed by nothing else.

        Raises:
            Preempted: SIGTERM or SIGUSR1 came; the run has saved.
            UserError: another run holds the folders of output or checkpoints.
            NonFiniteSteps: several steps in a row were not finite.
            CallbackFailed: a callback of the user's own raised.
        """
        config = args if isinstance(args, SFTConfig) else from_namespace(SFTConfig, args)
        check_agreement(facts_of_config(config), self.strategy.groups.control)
        if not self._has_own_objective:
            self.objective = objective_named(config.train.loss)
        named_callbacks = callbacks_named(config.train.callbacks) if self._given_callbacks is None else []
        steps_per_epoch = self.windows.steps_per_epoch or num_update_steps_per_epoch or 0
        num_steps = min(steps_per_epoch * self.max_epochs, config.train.max_steps or 2**62)
        resume_step = self.windows.num_steps_before(consumed_samples)
        identity = replace(self.identity(config, num_steps), run_id=self.run_id)
        with owning_together(config.ckpt.folders(), self.strategy.groups.control, self.strategy.print):
            self.run(
                named_callbacks,
                standard_callbacks(self, config, num_steps, resume_step, identity),
                consumed_samples,
                config.train.max_steps,
                AuxLossSettings(config.model.aux_loss_coef, config.model.aux_loss_scope),
                config.logger.entropy,
            )

    @property
    def run_id(self) -> str | None:
        """Of this run, from its first start on; None for one that goes on from a checkpoint of an earlier version.

        All ranks ask together.
        """
        if self._run_id is None and self.trained.restored_progress is not None:
            self._run_id = self.trained.restored_run_id
        elif self._run_id is None:
            self._run_id = gather_objects(secrets.token_hex(8), self.strategy.groups.control)[0]
        return self._run_id

    def identity(self, config: SFTConfig, num_steps: int) -> RunIdentity:
        """The identity of this run, for its checkpoints; nothing is known of the data of a loader of the user's own."""
        config = replace(config, train=replace(config.train, loss=name_of(self.objective)))
        model = self.model.model
        data = self.train_dataloader.dataset if isinstance(self.train_dataloader, StepWindowLoader) else None
        return run_identity(
            config,
            data_fingerprint=getattr(data, "fingerprint", "unknown"),
            num_samples=-1 if data is None else len(data),
            model_shape=model_shape(self.model.trainable_module),
            tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer),
            horizon_steps=num_steps,
            base_model=base_model_fingerprint(model.config.name_or_path) if hasattr(model, "peft_config") else None,
        )


def _check_max_norm(max_norm: float | None, strategy: DeepspeedStrategy) -> None:
    if max_norm is not None and max_norm != strategy.max_norm:
        raise UserError(
            f"SFTTrainer(max_norm={max_norm:g}) contradicts the strategy, which clips gradients at "
            f"{strategy.max_norm:g} (--max_norm). Give both the same value, or leave the trainer's out."
        )


def _check_pretrain_mode(pretrain_mode: bool, dataloader: StepWindowLoader | Iterable[Any]) -> None:
    """A data set of ours has made its masks already."""
    made_so = getattr(getattr(dataloader, "dataset", None), "pretrain_mode", pretrain_mode)
    if made_so != pretrain_mode:
        raise UserError(
            f"SFTTrainer(pretrain_mode={pretrain_mode}) contradicts its data set, which was made with "
            f"pretrain_mode={made_so}: its loss masks hold. Give both the same value."
        )
