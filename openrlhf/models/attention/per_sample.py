"""Packed attention sample by sample, for the CPU: its cost is the sum of the squares of the samples' lengths.

Registered in transformers under `NAME`. It reads the samples' borders under transformers' own name for them,
`cu_seq_lens_q`, and without them computes padded batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from openrlhf.models.attention.dense import attend, attend_causally
from openrlhf.models.attention.options import AttentionOptions

NAME = "per_sample"


def per_sample_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, A, S, D), key and value (B, K, S, D) → (B, S, A, D)."""
    options = AttentionOptions(scaling, dropout, sliding_window, softcap, s_aux)
    if cu_seq_lens_q is None:
        return padded_attention(module, query, key, value, attention_mask, options, **kwargs), None
    assert query.shape[0] == 1, "a pack is one row"
    lengths = cu_seq_lens_q.diff().tolist()
    samples = zip(*(part.split(lengths, dim=2) for part in (query, key, value)))
    outputs = [attend_causally(*sample, options) for sample in samples]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def padded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    options: AttentionOptions,
    **kwargs: Any,
) -> Tensor:
    """Attention of a padded batch, or of a step of generation, as transformers computes it: (B, S, A, D)."""
    if options.is_plain:
        sdpa_options = dict(dropout=options.dropout, scaling=options.scaling)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **sdpa_options, **kwargs)[0]
    if attention_mask is None and query.shape[2] == 1:
        attention_mask = torch.ones(1, key.shape[2], dtype=torch.bool, device=query.device)
    return attend(query, key, value, options, attention_mask).transpose(1, 2).contiguous()


def packed_mask(
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Tensor | None:
    """transformers' mask interface: no mask for a pack, whose attention finds the samples' borders by itself.

    transformers sees by the position ids that several samples stand in a row, and then forbids to skip the mask.
    """
    is_pack = attention_mask is None and q_length == kv_length and not allow_is_causal_skip
    if is_pack:
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        **kwargs,
    )
