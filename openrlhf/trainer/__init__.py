"""The loop, its step, and the callbacks around it."""

from openrlhf.trainer.callbacks import Callback
from openrlhf.trainer.command_trainer import CommandTrainer
from openrlhf.trainer.pair_trainers import DPOTrainer, RewardModelTrainer
from openrlhf.trainer.sft_trainer import SFTTrainer
from openrlhf.trainer.trainer import Trainer

__all__ = ["Callback", "CommandTrainer", "DPOTrainer", "RewardModelTrainer", "SFTTrainer", "Trainer"]
