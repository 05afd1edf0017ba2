"""OpenRLHF's import path of RewardModelTrainer."""

from openrlhf.trainer.pair_trainers import RewardModelTrainer

__all__ = ["RewardModelTrainer"]
