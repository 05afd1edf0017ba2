"""Plain causal attention of a pack on the CPU as one node of the graph; sample by sample, forward and backward.

torch's fused kernel is slow on short samples in half precision (its backward pass most of all). There, plain products
over blocks of query rows take its place: scores, softmax and their gradients in float32 as in the kernel, the products
with values and the gradients of queries and keys in the inputs' precision. Nothing of the size of the scores is kept
for the backward pass; they are computed again.

Shapes: T tokens of the pack, L of one sample, A query heads, K key heads (A = K * G), D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from openrlhf.models.attention.dense import repeat_heads
from openrlhf.models.attention.options import AttentionOptions

LONGEST_BY_PRODUCTS = 768  # tokens; for longer samples torch's kernel is as fast
_BLOCK_ROWS = 64  # queries a block: their scores stay in the cache


def computes(query: Tensor, value: Tensor, options: AttentionOptions) -> bool:
    """Whether this module can stand in for torch's attention."""
    is_simple = options.is_plain and options.window is None and options.dropout == 0
    return is_simple and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


def attend_pack(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scaling: float | None) -> Tensor:
    """Causal attention within each sample.

    Args:
        query: (A, T, D); key and value: (K, T, D).
        lengths: tokens of each sample; they add up to T.
        scaling: of query · key; None: 1 / sqrt(D).

    Returns:
        (T, A, D), contiguous.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _PackAttention.apply(query, key, value, lengths, scale)


class _PackAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> Tensor:
        output = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        sums: list[Tensor | None] = []
        for rows in _spans(lengths):
            q, k, v = query[:, rows], key[:, rows], value[:, rows]
            into = output[rows].transpose(0, 1)
            if _is_long(q):
                sums.append(_flash_forward(q, k, v, scale, into))
            else:
                sums.append(None)
                _forward(q, k, v, scale, into)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.lengths, ctx.scale = lengths, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        query, key, value, output, *sums = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(part) for part in (query, key, value))
        for rows, log_sum_exp in zip(_spans(ctx.lengths), sums, strict=True):
            q, k, v = query[:, rows], key[:, rows], value[:, rows]
            into = grad_query[:, rows], grad_key[:, rows], grad_value[:, rows]
            g = grad[rows].transpose(0, 1)
            if log_sum_exp is None:
                _backward(g, q, k, v, ctx.scale, into)
            else:
                _flash_backward(g, q, k, v, output[rows].transpose(0, 1), log_sum_exp, ctx.scale, into)
        return grad_query, grad_key, grad_value, None, None


def _spans(lengths: list[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _is_long(query: Tensor) -> bool:
    """Whether torch's kernel computes the sample: it is as fast, or works in the precision of the inputs anyway."""
    return query.shape[1] > LONGEST_BY_PRODUCTS or query.dtype not in (torch.bfloat16, torch.float16)


# --- by products


def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float, into: Tensor) -> None:
    """Writes the output (A, L, D) of one sample."""
    scaled_key = key.float() * scale
    for rows in _blocks(query.shape[1]):
        weights = _weights(_by_key_head(query[:, rows], key), scaled_key, rows)
        block = torch.bmm(weights.to(value.dtype), value[:, : rows.stop])
        into[:, rows] = block.view_as(into[:, rows])


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, into: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Writes the gradients of one sample's query, key and value."""
    scaled_key, exact_value = key.float() * scale, value.float()
    grad_key, grad_value = torch.zeros_like(scaled_key), torch.zeros_like(exact_value)
    for rows in _blocks(query.shape[1]):
        q, g = _by_key_head(query[:, rows], key), _by_key_head(grad[:, rows], key)
        weights = _weights(q, scaled_key, rows)
        grad_value[:, : rows.stop] += torch.bmm(weights.to(g.dtype).transpose(1, 2), g)
        grad_weights = torch.bmm(g.float(), exact_value[:, : rows.stop].transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, torch.float32).mul_(scale).to(q.dtype)
        into[0][:, rows] = torch.bmm(grad_scores, key[:, : rows.stop]).view_as(into[0][:, rows])
        grad_key[:, : rows.stop] += torch.bmm(grad_scores.transpose(1, 2), q)
    into[1].copy_(grad_key)
    into[2].copy_(grad_value)


def _blocks(length: int) -> Iterator[slice]:
    for start in range(0, length, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, length))


def _by_key_head(rows: Tensor, key: Tensor) -> Tensor:
    """(A, rows, D) → (K, G * rows, D): all query heads of a key head in one product."""
    return rows.reshape(key.shape[0], -1, rows.shape[2])


def _weights(query: Tensor, scaled_key: Tensor, rows: slice) -> Tensor:
    """(K, G * rows, rows.stop) float32: what each query of the block gives to each token up to the block's last."""
    num_rows = rows.stop - rows.start
    scores = torch.bmm(query.float(), scaled_key[:, : rows.stop].transpose(1, 2))
    by_query_head = scores.view(scores.shape[0], -1, num_rows, rows.stop)
    by_query_head[..., rows.start :] += _LATER_TOKENS[:num_rows, :num_rows]
    return torch.softmax(scores, -1)


_LATER_TOKENS = torch.full((_BLOCK_ROWS, _BLOCK_ROWS), -torch.inf).triu_(1)


# --- by torch's kernel


def _flash_forward(query: Tensor, key: Tensor, value: Tensor, scale: float, into: Tensor) -> Tensor:
    """Writes the output (A, L, D) of one sample; returns its log-sum-exp."""
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None], *_repeated(query, key, value), 0.0, True, scale=scale
    )
    into.copy_(output[0])
    return log_sum_exp


def _flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum_exp: Tensor,
    scale: float,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradients of one sample's query, key and value."""
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad[None], query[None], *_repeated(query, key, value), output[None], log_sum_exp, 0.0, True, scale=scale
    )
    into[0].copy_(grads[0][0])
    for place, part in zip(into[1:], grads[1:], strict=True):
        place.copy_(part[0].unflatten(0, (key.shape[0], -1)).sum(1))


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return repeat_heads(key[None], query.shape[0]), repeat_heads(value[None], query.shape[0])
