"""What a function of flash attention computes, one sample after the other in float32, and what it demands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CALLS: list[dict[str, Any]] = []  # the options of each call since a test last cleared the list


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    longest: int,
    *,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    **recorded: Any,
) -> Tensor:
    """query (T, A, D), key and value (T, K, D), borders (samples + 1,) → (T, A, D)."""
    CALLS.append(dict(causal=causal, window=window, softcap=softcap, sinks=sinks, **recorded))
    assert query.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type"
    assert query.dtype == key.dtype == value.dtype, "query, key and value must have the same dtype"
    assert query.shape[-1] == value.shape[-1] <= 256, "FlashAttention only supports head dimension at most 256"
    assert query.shape[-1] % 8 == 0, "head_size must be a multiple of 8"
    assert borders.dtype == torch.int32, "cu_seqlens must have dtype int32"
    assert int(borders.diff().max()) == int(longest), "max_seqlen is the longest sample's length"
    assert int(borders[-1]) == query.shape[0], "the samples are the whole pack"
    lengths = borders.diff().tolist()
    parts = zip(*(part.float().split(lengths) for part in (query, key, value)), strict=True)
    outputs = [_sample(*part, scale, causal, window[0], softcap, sinks) for part in parts]
    return torch.cat(outputs).to(query.dtype)


def padded(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """query (B, S, A, D), key and value (B, S, K, D) → (B, S, A, D); options as of `varlen`."""
    num_rows, length = query.shape[:2]
    borders = torch.arange(0, (num_rows + 1) * length, length, dtype=torch.int32)
    output = varlen(*(part.flatten(0, 1) for part in (query, key, value)), borders, length, **options)
    return output.unflatten(0, (num_rows, length))


def _sample(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    causal: bool,
    left: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("qad,kad->aqk", query, key) * (scale or query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))[None]
    sees = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
    sees = sees & (distance <= left) if left >= 0 else sees
    scores = scores.masked_fill(~sees, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float()[:, None, None].expand(-1, len(query), 1)], -1)
    return torch.einsum("aqk,kad->qad", scores.softmax(-1)[..., : len(query)], value)
