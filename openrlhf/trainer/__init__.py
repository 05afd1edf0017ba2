"""The loop: step windows in, a trained model out."""

from openrlhf.trainer.sft_trainer import SFTTrainer

__all__ = ["SFTTrainer"]
