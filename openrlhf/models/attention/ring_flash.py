"""Ring attention by the packages ring-flash-attn and flash-attn, behind the interface of our own ring.

Their zigzag shares a sample as ours does (parallel/sequence_shares.py) where its length is a multiple of twice the
ring's size. What they do not know (other lengths, windows, soft-capped scores, sinks, float32) our own ring computes.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from openrlhf.errors import UserError
from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.models.attention.per_sample import CausalMask
from openrlhf.models.attention.ring import ring_attention
from openrlhf.models.attention.ring_plan import Ring

NAME = "ring_flash_attn"
INSTALL_LINE = "pip install flash-attn ring-flash-attn --no-build-isolation"
_KERNEL_DTYPES = (torch.float16, torch.bfloat16)


def require_ring_flash(device_type: str) -> None:
    """Raises UserError, with the reason in one line, where the packages cannot be used here."""
    flag = f"--ds.attn_implementation {NAME}"
    missing = [name for name in ("flash_attn", "ring_flash_attn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{flag} needs packages that are not installed ({', '.join(missing)}): {INSTALL_LINE} (or use auto: our "
            "own ring needs none)."
        )
    if device_type != "cuda":
        raise UserError(f"{flag} runs on CUDA only, not on {device_type}. Use auto.")
    try:
        importlib.import_module("ring_flash_attn")
    except Exception as error:  # whatever it is, the packages are of no use
        raise UserError(
            f"{flag} cannot be used with transformers {transformers.__version__}: importing ring_flash_attn fails with "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}. Use auto."
        ) from error


def ring_flash_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | CausalMask | None,
    ring: Ring | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, A, T, D), key and value (1, K, T, D) → (1, T, A, D)."""
    window = attention_mask.window if isinstance(attention_mask, CausalMask) else None
    options = replace(AttentionOptions.taken_from(dict(kwargs)), window=window)
    if ring is None or not knows(query, value, options, ring):
        return ring_attention(module, query, key, value, attention_mask, ring=ring, **kwargs)
    from ring_flash_attn import zigzag_ring_flash_attn_varlen_func

    borders = torch.tensor((0, *ring.sample_lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    output = zigzag_ring_flash_attn_varlen_func(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        (borders // ring.size).to(query.device),
        ring.longest_sample // ring.size,
        softmax_scale=options.scaling,
        causal=True,
        group=ring.group,
    )
    return output[None], None


def knows(query: Tensor, value: Tensor, options: AttentionOptions, ring: Ring) -> bool:
    """Whether the packages compute this, on shares cut as ours are."""
    sees_all = options.window is None or options.window >= ring.longest_sample
    is_plain = options.is_plain and options.dropout == 0.0 and sees_all and query.dtype in _KERNEL_DTYPES
    divides = all(length % (2 * ring.size) == 0 for length in ring.sample_lengths)
    return is_plain and divides and value.shape[-1] == query.shape[-1]
