"""OpenRLHF's import path of the sampler."""

from openrlhf.batching import DistributedSampler

__all__ = ["DistributedSampler"]
