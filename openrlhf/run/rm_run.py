"""A run of train_rm: what it has of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openrlhf.config import RMConfig
from openrlhf.models import RewardModel
from openrlhf.models.classifier import classifier_facts
from openrlhf.objectives import RewardObjective
from openrlhf.run.builders import build_reward_model
from openrlhf.run.pair_run import PairRun
from openrlhf.trainer import RewardModelTrainer
from openrlhf.trainer.pair_trainers import reward_objective


class RMRun(PairRun):
    """See `TrainingRun`."""

    config: RMConfig
    trainer: RewardModelTrainer
    facts_of = staticmethod(classifier_facts)

    @classmethod
    def build_objective(cls, config: RMConfig) -> RewardObjective:
        return reward_objective(config.model)

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        if self.config.model.margin_loss_enable:
            self.train_data.check_margins()
            if self.eval_data is not None:
                self.eval_data.check_margins(needs_one=False)

    def build_model(self) -> RewardModel:
        return build_reward_model(self.config_of_models, self.strategy.get_ds_train_config())

    def rows_of_start_table(self) -> dict[str, str]:
        model = self.trainer.model
        assert isinstance(model, RewardModel), "a run of train_rm trains one"
        begins = f"begins by the seed {self.config.train.seed}: the model has none"
        return super().rows_of_start_table() | {
            "loss": self.config.model.loss_type,
            "head": begins if model.head_begins else "the model's own",
        }

    def _export(self, output_dir: Path) -> None:
        progress = self.trainer.progress
        is_another_step = self.config.ckpt.export_best and progress.best_eval_step != progress.optimizer_step
        if is_another_step:
            self.trainer.forget_statistics()
        if is_another_step or progress.eval_loss_here is not None:  # in this process, or in an earlier one
            self.trainer.note_statistics()
        super()._export(output_dir)

    def trainer_of(self, **parts: Any) -> RewardModelTrainer:
        return RewardModelTrainer(loss=self.config.model.loss_type, **parts)
