"""torch's variable-length attention for CUDA on the CPU: the contract of the real operators is asserted, then computed.

with varlen_on_cpu() as calls:
    ...                         # calls: "forward" and "backward", as they come
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

_calls: list[str] = []


@contextmanager
def varlen_on_cpu() -> Iterator[list[str]]:
    _register()
    _calls.clear()
    yield _calls


@functools.cache
def _register() -> None:
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    *unused: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    _calls.append("forward")
    _check_inputs(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    output, log_sum_exp = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for rows, keys in _samples(cu_seq_q, cu_seq_k):
        scores, (_, _, v) = _scores(query[rows], key[keys], value[keys], is_causal, scale, window_size)
        log_sum_exp[:, rows] = scores.logsumexp(-1)
        output[rows] = (scores.softmax(-1) @ v).transpose(0, 1).to(output.dtype)
    assert log_sum_exp.isfinite().all(), "a row that sees nothing: the real kernel gives it +inf"
    return output, log_sum_exp, torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _calls.append("backward")
    _check_inputs(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    assert grad_out.dtype == out.dtype == query.dtype, f"gradient {grad_out.dtype}, output {out.dtype}"
    assert grad_out.shape == out.shape == query.shape
    assert grad_out.stride(-1) == out.stride(-1) == 1, "head sizes are contiguous"
    assert lse.shape == (query.shape[1], len(query)), f"log-sum-exp {tuple(lse.shape)} is not (heads, tokens)"
    assert lse.dtype == torch.float32, lse.dtype
    assert lse.is_contiguous()
    assert rng_state.shape == (2,)
    assert rng_state.dtype == torch.uint64
    grads = tuple(torch.empty_like(part) for part in (query, key, value))
    for rows, keys in _samples(cu_seq_q, cu_seq_k):
        scores, (q, k, v) = _scores(query[rows], key[keys], value[keys], is_causal, scale, window_size)
        grad, output = (part[rows].transpose(0, 1).float() for part in (grad_out, out))
        weights = (scores - lse[:, rows, None]).exp()
        delta = (grad * output).sum(-1, keepdim=True)
        grad_scores = weights * (grad @ v.transpose(1, 2) - delta) * _scaling(query, scale)
        by_head = (grad_scores @ k, grad_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ grad)
        for into, where, part in zip(grads, (rows, keys, keys), by_head, strict=True):
            into[where] = part.unflatten(0, (into.shape[1], -1)).sum(1).transpose(0, 1).to(into.dtype)
    return grads


def _check_inputs(
    query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> None:
    """What aten checks, or takes for granted, on CUDA."""
    head_size = query.shape[-1]
    assert query.dtype in (torch.float16, torch.bfloat16), f"FlashAttention only supports fp16 and bf16: {query.dtype}"
    assert key.dtype == value.dtype == query.dtype, "query, key and value have one dtype"
    assert head_size <= 256, f"head size {head_size} is above 256"
    assert head_size % 8 == 0, f"head size {head_size} is no multiple of 8"
    assert key.shape == value.shape
    assert key.shape[-1] == head_size
    assert query.shape[1] % key.shape[1] == 0, f"{query.shape[1]} query heads, {key.shape[1]} key heads"
    assert all(part.stride(-1) == 1 for part in (query, key, value)), "head sizes are contiguous"
    for borders, rows, longest in ((cu_q, query, max_q), (cu_k, key, max_k)):
        assert borders.dtype == torch.int32, f"borders are int32, not {borders.dtype}"
        assert borders.is_contiguous()
        assert borders[0] == 0
        assert borders[-1] == len(rows), f"borders end at {borders[-1]}, the rows at {len(rows)}"
        assert isinstance(longest, int)
        assert longest == borders.diff().max(), f"longest sample {longest}, not {borders.diff().max()}"
    assert len(cu_q) == len(cu_k)


def _samples(cu_q: Tensor, cu_k: Tensor) -> Iterator[tuple[slice, slice]]:
    borders = torch.stack([cu_q, cu_k]).T.tolist()
    for (q_begin, k_begin), (q_end, k_end) in zip(borders, borders[1:], strict=False):
        yield slice(q_begin, q_end), slice(k_begin, k_end)


def _scores(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float | None, window_size: list[int] | None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """(heads, rows, keys) of a sample, and its parts as (heads, rows, D), key heads repeated; all in float32."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = (part.transpose(0, 1).float() for part in (query, key, value))
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    # rows end where the keys end; how far a row sees back, and ahead; -1: everything
    distance = torch.arange(len(query))[:, None] + len(key) - len(query) - torch.arange(len(key))
    back, ahead = window_size or (-1, -1)
    ahead = 0 if is_causal else ahead
    is_seen = ((distance <= back) | (back < 0)) & ((distance >= -ahead) | (ahead < 0))
    return (q @ k.transpose(1, 2) * _scaling(query, scale)).masked_fill(~is_seen, -torch.inf), (q, k, v)


def _scaling(query: Tensor, scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale
