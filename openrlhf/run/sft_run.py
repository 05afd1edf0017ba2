"""A run of supervised fine-tuning: what it has of its own."""

from __future__ import annotations

import functools

from openrlhf.config import SFTConfig
from openrlhf.datasets.sft_dataset import prepare_sft_dataset
from openrlhf.models import Actor
from openrlhf.objectives import Objective, objective_named
from openrlhf.run.builders import Prepare, build_actor
from openrlhf.run.training_run import Prepared, TrainingRun
from openrlhf.trainer import SFTTrainer


class SFTRun(TrainingRun):
    """See `TrainingRun`."""

    config: SFTConfig

    @classmethod
    def build_objective(cls, config: SFTConfig) -> Objective:
        return objective_named(config.train.loss)

    @classmethod
    def preparation(cls, config: SFTConfig) -> Prepare:
        return functools.partial(prepare_sft_dataset, pretrain_mode=config.model.pretrain_mode_enable)

    def build_model(self) -> Actor:
        return build_actor(self.config, self.strategy.get_ds_train_config())

    def build_trainer(self, prepared: Prepared) -> SFTTrainer:
        config = self.config
        return SFTTrainer(
            prepared.model,
            self.strategy,
            prepared.optimizer,
            prepared.train_loader,
            prepared.eval_loader,
            prepared.scheduler,
            max_norm=config.max_norm,
            pretrain_mode=config.model.pretrain_mode_enable,
            batch_size=config.train.batch_size,
            max_epochs=config.train.max_epochs,
            tokenizer=self.tokenizer,
            save_hf_ckpt=config.ckpt.save_hf,
            disable_ds_ckpt=config.ckpt.disable_ds,
            callbacks=self.callbacks,
            objective=self.objective,
        )
