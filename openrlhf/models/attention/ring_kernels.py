"""Attention of one block of a ring, with the log-sum-exp that is needed to merge blocks; forward and backward.

Three kernels of one form: the CPU's flash attention, CUDA's variable-length flash attention, and plain products for
what those do not know (sliding windows, soft-capped scores, float32 on CUDA).

Shapes: Q query rows, R key rows (those of all samples of the block, one sample after another), A query heads, K key
heads, D head size.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from openrlhf.engine.torch_operators import (
    Borders,
    cpu_flash,
    cpu_flash_backward,
    cuda_flash,
    cuda_flash_backward,
)
from openrlhf.models.attention.dense import AttentionOptions, repeat_heads
from openrlhf.models.attention.ring_plan import Block


class BlockKernel(Protocol):
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, block: Block, options: AttentionOptions
    ) -> tuple[Tensor, Tensor]:
        """query (Q, A, D), key and value (R, K, D) → output (Q, A, D), log-sum-exp (Q, A) of the scores."""

    def backward(self, saved: SavedRows, block: Block, options: AttentionOptions) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value from the block's part of the attention."""


class SavedRows(NamedTuple):
    """The inputs of a block's backward pass: output and log-sum-exp are those of the whole attention."""

    grad: Tensor  # (Q, A, D) of the output
    query: Tensor  # (Q, A, D)
    key: Tensor  # (R, K, D)
    value: Tensor  # (R, K, D)
    output: Tensor  # (Q, A, D)
    log_sum_exp: Tensor  # (Q, A)


def choose_kernel(query: Tensor, options: AttentionOptions) -> BlockKernel:
    if options.window is not None or options.softcap is not None:
        return ProductKernel()
    if query.device.type == "cpu":
        return CpuFlashKernel()
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    return CudaFlashKernel() if is_half else ProductKernel()


class CpuFlashKernel:
    """Sample by sample; the operator wants (1, heads, rows, D), equal numbers of heads, and equal head sizes."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, block: Block, options: AttentionOptions
    ) -> tuple[Tensor, Tensor]:
        outputs, sums = [], []
        for q, k, v in _by_sample(block, (query,), (key, value)):
            num_heads = q.shape[1]
            k, v = repeat_heads(k, num_heads), repeat_heads(v, num_heads)
            output, log_sum_exp = cpu_flash(q, k, v, block.is_causal, options.scaling)
            outputs.append(output[0].transpose(0, 1))
            sums.append(log_sum_exp[0].transpose(0, 1))
        return torch.cat(outputs), torch.cat(sums)

    def backward(self, saved: SavedRows, block: Block, options: AttentionOptions) -> tuple[Tensor, Tensor, Tensor]:
        by_query = (saved.grad, saved.query, saved.output, saved.log_sum_exp[..., None])
        grads = []
        for grad, q, output, log_sum_exp, k, v in _by_sample(block, by_query, (saved.key, saved.value)):
            num_heads, num_key_heads = q.shape[1], k.shape[1]
            k, v = repeat_heads(k, num_heads), repeat_heads(v, num_heads)
            dq, dk, dv = cpu_flash_backward(
                grad, q, k, v, output, log_sum_exp[..., 0], block.is_causal, options.scaling
            )
            grads.append((_rows(dq), _rows(_sum_groups(dk, num_key_heads)), _rows(_sum_groups(dv, num_key_heads))))
        dq, dk, dv = (torch.cat(parts) for parts in zip(*grads, strict=True))
        return dq, dk, dv


class CudaFlashKernel:
    """All samples in one call, by the operators behind torch.nn.attention.varlen."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, block: Block, options: AttentionOptions
    ) -> tuple[Tensor, Tensor]:
        query, key, value = (part.contiguous() for part in (query, key, value))
        borders = _borders(block, query.device)
        output, log_sum_exp = cuda_flash(query, key, value, borders, block.is_causal, options.scaling)
        return output, log_sum_exp.transpose(0, 1)

    def backward(self, saved: SavedRows, block: Block, options: AttentionOptions) -> tuple[Tensor, Tensor, Tensor]:
        by_head = saved._replace(log_sum_exp=saved.log_sum_exp.transpose(0, 1))
        grad, query, key, value, output, log_sum_exp = (part.contiguous() for part in by_head)
        borders = _borders(block, query.device)
        return cuda_flash_backward(
            grad, query, key, value, output, log_sum_exp, borders, block.is_causal, options.scaling
        )


class ProductKernel:
    """Plain products, sample by sample: any mask, soft-capped scores, any dtype, any device."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, block: Block, options: AttentionOptions
    ) -> tuple[Tensor, Tensor]:
        outputs, sums = [], []
        masks = _masks(block, options.window)
        for (q, k, v), mask in zip(_by_sample(block, (query,), (key, value)), masks, strict=True):
            scores = self._scores(q, repeat_heads(k, q.shape[1]), options).masked_fill_(~mask, -torch.inf)
            log_sum_exp = scores.logsumexp(-1)
            weights = (scores - log_sum_exp[..., None]).exp_().nan_to_num_(0.0)  # rows that see nothing here
            outputs.append(_rows(weights.to(v.dtype) @ repeat_heads(v, q.shape[1])))
            sums.append(log_sum_exp[0].transpose(0, 1))
        return torch.cat(outputs), torch.cat(sums)

    def backward(self, saved: SavedRows, block: Block, options: AttentionOptions) -> tuple[Tensor, Tensor, Tensor]:
        by_query = (saved.grad, saved.query, saved.output, saved.log_sum_exp[..., None])
        masks = _masks(block, options.window)
        grads = []
        samples = _by_sample(block, by_query, (saved.key, saved.value))
        for (grad, q, output, log_sum_exp, k, v), mask in zip(samples, masks, strict=True):
            num_key_heads = k.shape[1]
            k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
            scores = self._scores(q, k, options)
            # With P weights, dP = dO V' and delta = sum of output * dO of each query: dS = P * (dP - delta). As
            # log-sum-exp and output are those of all keys, so are P and delta, whatever block this is.
            weights = (scores - log_sum_exp).exp().masked_fill_(~mask, 0.0)
            grad_weights = (grad @ v.transpose(2, 3)).to(scores.dtype)
            delta = (grad.to(scores.dtype) * output.to(scores.dtype)).sum(-1, keepdim=True)
            grad_scores = weights * (grad_weights - delta)
            if options.softcap is not None:
                grad_scores *= 1 - (scores / options.softcap).square()
            grad_scores = (grad_scores * _scaling(q, options)).to(q.dtype)
            dk, dv = grad_scores.transpose(2, 3) @ q, weights.to(v.dtype).transpose(2, 3) @ grad
            grads.append(
                (
                    _rows(grad_scores @ k),
                    _rows(_sum_groups(dk, num_key_heads)),
                    _rows(_sum_groups(dv, num_key_heads)),
                )
            )
        dq, dk, dv = (torch.cat(parts) for parts in zip(*grads, strict=True))
        return dq, dk, dv

    def _scores(self, query: Tensor, key: Tensor, options: AttentionOptions) -> Tensor:
        """(1, A, rows, rows) in float32 at least, soft-capped."""
        scores = query @ key.transpose(2, 3) * _scaling(query, options)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores if options.softcap is None else options.softcap * torch.tanh(scores / options.softcap)


def _by_sample(block: Block, by_query: tuple[Tensor, ...], by_key: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """For each sample the parts of all tensors, (rows, heads, D) turned to (1, heads, rows, D)."""
    parts = [part.transpose(0, 1)[None].split(block.queries.lengths, dim=2) for part in by_query]
    parts += [part.transpose(0, 1)[None].split(block.keys.lengths, dim=2) for part in by_key]
    return list(zip(*parts, strict=True))


def _rows(part: Tensor) -> Tensor:
    """(1, heads, rows, D) → (rows, heads, D)"""
    return part[0].transpose(0, 1)


def _sum_groups(grad: Tensor, num_key_heads: int) -> Tensor:
    """(1, A, rows, D) → (1, K, rows, D): a key head's gradient comes from all query heads that use it."""
    return grad if grad.shape[1] == num_key_heads else grad.unflatten(1, (num_key_heads, -1)).sum(2)


def _scaling(query: Tensor, options: AttentionOptions) -> float:
    return query.shape[-1] ** -0.5 if options.scaling is None else options.scaling


def _masks(block: Block, window: int | None) -> list[Tensor]:
    """For each sample (query rows, key rows), True where the query sees the key."""
    queries = block.queries.positions.split(block.queries.lengths)
    keys = block.keys.positions.split(block.keys.lengths)
    distances = (q[:, None] - k[None, :] for q, k in zip(queries, keys, strict=True))
    return [(distance >= 0) & (distance < (window or torch.inf)) for distance in distances]


def _borders(block: Block, device: torch.device) -> Borders:
    """cu_seqlens of queries and keys, and their longest samples."""

    def cumulative(lengths: tuple[int, ...]) -> Tensor:
        return torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)

    query_lengths, key_lengths = block.queries.lengths, block.keys.lengths
    return cumulative(query_lengths), cumulative(key_lengths), max(query_lengths), max(key_lengths)
