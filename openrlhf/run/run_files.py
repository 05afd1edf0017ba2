"""The files that a run leaves beside its model, other than checkpoints."""

from __future__ import annotations

from openrlhf.config import SFTConfig
from openrlhf.config.schema import shown_values
from openrlhf.tracking import Tracker, WandbSettings, open_tracker


def open_run_tracker(config: SFTConfig, num_steps: int, optimizer_step: int, is_rank_0: bool) -> Tracker:
    """The run's tracker, which goes on from `optimizer_step` where the run does."""
    wandb = config.logger.wandb
    return open_tracker(
        config.ckpt.output_dir,
        num_steps=num_steps,
        is_rank_0=is_rank_0,
        resume_step=optimizer_step or None,
        logging_steps=config.logger.logging_steps,
        tensorboard_dir=config.logger.tensorboard_dir,
        wandb=WandbSettings(wandb.project, wandb.name, wandb.group, wandb.org, wandb.key) if wandb.enable else None,
        shown_config=shown_values(config),
    )
