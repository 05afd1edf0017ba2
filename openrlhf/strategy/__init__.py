"""The face of the engine room that scripts and the trainer hold: ranks, loaders, optimizer steps, checkpoints."""

from openrlhf.strategy.strategy import DeepspeedStrategy

__all__ = ["DeepspeedStrategy"]
