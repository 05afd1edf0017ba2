"""OpenRLHF's import path of small helpers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openrlhf.errors import UserError
from openrlhf.models.loading import PARAM_DTYPES
from openrlhf.utils import get_strategy, get_tokenizer

__all__ = ["convert_to_torch_dtype", "get_strategy", "get_tokenizer", "zero_pad_sequences"]


def convert_to_torch_dtype(param_dtype: str) -> torch.dtype:
    """The dtype of "bf16", "fp16" or "fp32". Raises UserError for another name."""
    if param_dtype not in PARAM_DTYPES:
        raise UserError(f"The dtype {param_dtype!r} is none of {', '.join(PARAM_DTYPES)}.")
    return PARAM_DTYPES[param_dtype]


def zero_pad_sequences(
    sequences: Sequence[Tensor], side: str = "left", value: float = 0, stack: bool = False
) -> Tensor:
    """Tensors (…, L) of several lengths → one tensor, each padded with `value` to the longest.

    Args:
        side: "left" or "right".
        stack: stack them along a new first dimension, in place of joining them along the first one.
    """
    if side not in ("left", "right"):
        raise UserError(f"zero_pad_sequences: side is {side!r}; it must be left or right.")
    longest = max(sequence.shape[-1] for sequence in sequences)
    missing = [longest - sequence.shape[-1] for sequence in sequences]
    padded = [
        torch.nn.functional.pad(sequence, (count, 0) if side == "left" else (0, count), value=value)
        for sequence, count in zip(sequences, missing, strict=True)
    ]
    return torch.stack(padded) if stack else torch.cat(padded)
