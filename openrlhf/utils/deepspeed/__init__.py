"""The engine: DeepSpeed's configuration, its averaging (undone in one place), its optimizers."""

from openrlhf.utils.deepspeed.strategy import DeepspeedStrategy

__all__ = ["DeepspeedStrategy"]
