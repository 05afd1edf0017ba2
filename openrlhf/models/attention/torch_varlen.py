"""Packed attention on CUDA by torch's own variable-length kernel: no flash-attn package is needed.

Registered in transformers under `NAME`. What the kernel does not know (float32, dropout, soft-capped scores, sinks)
goes sample by sample, as on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.models.attention.per_sample import CausalMask, attend_alone

NAME = "torch_varlen"
_KERNEL_DTYPES = (torch.float16, torch.bfloat16)


def torch_varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | CausalMask | None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, A, S, D), key and value (B, K, S, D) → (B, S, A, D)."""
    options = AttentionOptions.taken_from(kwargs)
    is_plain = options.is_plain and options.dropout == 0.0 and query.dtype in _KERNEL_DTYPES
    knows_all = is_plain and value.shape[-1] == query.shape[-1]
    if cu_seq_lens_q is None or not isinstance(attention_mask, CausalMask) or not knows_all:
        return attend_alone(module, query, key, value, attention_mask, options, cu_seq_lens_q, **kwargs), None
    from torch.nn.attention.varlen import varlen_attn

    assert query.shape[0] == 1, "a pack is one row"
    assert max_length_q is not None, "a pack comes with the length of its longest sample"
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=options.scaling,
        window_size=(-1, 0) if attention_mask.window is None else (attention_mask.window - 1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(output, Tensor), "no log-sum-exp was asked for"
    return output[None], None
