"""Attention shared by the ranks of a ring. (Placeholder being written)"""

from __future__ import annotations
from typing import Any
from torch import Tensor, nn
from openrlhf.models.attention.per_sample import per_sample_attention

NAME = "ring"


def ring_attention(module: nn.Module, *args: Any, **kwargs: Any):
    return per_sample_attention(module, *args, **kwargs)
