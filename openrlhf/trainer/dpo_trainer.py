"""OpenRLHF's import path of DPOTrainer."""

from openrlhf.trainer.pair_trainers import DPOTrainer

__all__ = ["DPOTrainer"]
