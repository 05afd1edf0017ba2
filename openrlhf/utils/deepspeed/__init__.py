"""OpenRLHF's import path of the strategy."""

from openrlhf.strategy import DeepspeedStrategy

__all__ = ["DeepspeedStrategy"]
