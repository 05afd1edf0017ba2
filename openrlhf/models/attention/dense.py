"""Attention over whole samples, on any device: torch's fused attention where it can, plain products where it must.

Shapes: B batch, A query heads, K key heads (A a multiple of K), L tokens, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AttentionOptions:
    """The options that a model gives its attention beside queries, keys and values."""

    scaling: float | None  # of query · key; None: 1 / sqrt(head size)
    dropout: float = 0.0
    window: int | None = None  # how many tokens back a token sees, itself included; None: all
    softcap: float | None = None  # scores = softcap * tanh(scores / softcap)
    sinks: Tensor | None = None  # (heads,) score of a place in each head that takes weight and gives nothing

    @classmethod
    def taken_from(cls, kwargs: dict[str, Any]) -> AttentionOptions:
        """Takes the options out of the keywords of transformers' attention interface, where they have these names."""
        return cls(
            scaling=kwargs.pop("scaling", None),
            dropout=kwargs.pop("dropout", 0.0),
            window=kwargs.pop("sliding_window", None),
            softcap=kwargs.pop("softcap", None),
            sinks=kwargs.pop("s_aux", None),
        )

    @property
    def is_plain(self) -> bool:
        """True where torch's own scaled_dot_product_attention computes it."""
        return self.softcap is None and self.sinks is None


def attend_causally(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    """Causal attention of one sample: query (B, A, L, D), key and value (B, K, L, D) → (B, A, L, D)."""
    length = query.shape[2]
    sees_all = options.window is None or options.window >= length
    mask = None if sees_all else causal_mask(length, options.window, query.device)
    return attend(query, key, value, options, mask)


def attend(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions, mask: Tensor | None) -> Tensor:
    """Attention where `mask` (…, L, L) is True (or, as floats, adds 0); None means causal."""
    key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
    if options.is_plain:
        return F.scaled_dot_product_attention(
            query, key, value, mask, options.dropout, is_causal=mask is None, scale=options.scaling
        )
    if mask is None:
        mask = causal_mask(query.shape[2], None, query.device)
    return attend_by_products(query, key, value, options, mask)


def causal_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """(L, L) bool: row i sees column j where i - window < j <= i."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    return mask if window is None else mask.triu_(1 - window)


def repeat_heads(key: Tensor, num_query_heads: int) -> Tensor:
    """(B, K, L, D) → (B, A, L, D), each key head standing beside its query heads."""
    groups = num_query_heads // key.shape[1]
    return key if groups == 1 else key.repeat_interleave(groups, dim=1)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions, mask: Tensor) -> Tensor:
    """As `attend`, for as many key heads as query heads. The backward pass keeps several (B, A, L, L) of scores."""
    scaling = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
    scores = (query @ key.transpose(2, 3) * scaling).to(torch.promote_types(query.dtype, torch.float32))
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    if options.sinks is not None:
        sinks = options.sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return F.dropout(weights, options.dropout, training=options.dropout > 0) @ value
