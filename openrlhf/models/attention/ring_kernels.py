"""Attention of one block of a ring, with the log-sum-exp that is needed to merge blocks; forward and backward.

Three kernels of one form: the CPU's flash attention, CUDA's variable-length flash attention, and plain products for
what those do not know (sliding windows, soft-capped scores; on CUDA float32, large heads, and GPUs before Ampere).

Shapes: Q query rows, R key rows (those of all samples of the block, one sample after another), A query heads, K key
heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from openrlhf.models.attention.flash import TORCH_VARLEN_CAPABILITIES, beyond_gpu
from openrlhf.models.attention.per_sample import FLASH_DTYPES, is_flash_head_size
from openrlhf.models.attention.ring_plan import Block
from openrlhf.parallel.sequence_shares import Span

LARGEST_TILE = 2**25  # scores of the plain products at a time: 128 MiB in float32, of which a few are held


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
    is_known = query.dtype in FLASH_DTYPES and is_flash_head_size(query.shape[-1])
    return CudaFlashKernel() if is_known and beyond_gpu(TORCH_VARLEN_CAPABILITIES) is None else ProductKernel()


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
        output, log_sum_exp = cuda_flash(query, key, value, _borders(block), block.is_causal, options.scaling)
        return output, log_sum_exp.transpose(0, 1)

    def backward(self, saved: SavedRows, block: Block, options: AttentionOptions) -> tuple[Tensor, Tensor, Tensor]:
        by_head = saved._replace(log_sum_exp=saved.log_sum_exp.transpose(0, 1))
        grad, query, key, value, output, log_sum_exp = (part.contiguous() for part in by_head)
        return cuda_flash_backward(
            grad, query, key, value, output, log_sum_exp, _borders(block), block.is_causal, options.scaling
        )


class ProductKernel:
    """Plain products, tile by tile: any mask, soft-capped scores, any dtype, any head size, any device."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, block: Block, options: AttentionOptions
    ) -> tuple[Tensor, Tensor]:
        outputs = torch.zeros_like(query)
        sums = query.new_full(query.shape[:2], -torch.inf, dtype=torch.promote_types(query.dtype, torch.float32))
        for tile in _tiles(block, options.window, query.shape[1]):
            q, (k, v) = _heads_first(query[tile.queries]), _repeated((key, value), tile, query.shape[1])
            scores = self._scores(q, k, options).masked_fill_(~_mask(block, tile, options.window), -torch.inf)
            log_sum_exp = scores.logsumexp(-1)
            weights = (scores - log_sum_exp[..., None]).exp_().nan_to_num_(0.0)  # rows that see nothing here
            outputs[tile.queries] = _rows(weights.to(v.dtype) @ v)
            sums[tile.queries] = log_sum_exp[0].transpose(0, 1)
        return outputs, sums

    def backward(self, saved: SavedRows, block: Block, options: AttentionOptions) -> tuple[Tensor, Tensor, Tensor]:
        num_heads, num_key_heads = saved.query.shape[1], saved.key.shape[1]
        grad_query = torch.zeros_like(saved.query)
        # A key is seen from several tiles: sums are taken in float32.
        grad_key, grad_value = (torch.zeros_like(saved.key, dtype=saved.log_sum_exp.dtype) for _ in range(2))
        for tile in _tiles(block, options.window, num_heads):
            by_query = (saved.grad, saved.query, saved.output, saved.log_sum_exp[..., None])
            grad, q, output, log_sum_exp = (_heads_first(part[tile.queries]) for part in by_query)
            k, v = _repeated((saved.key, saved.value), tile, num_heads)
            scores = self._scores(q, k, options)
            # With P weights, dP = dO V' and delta = sum of output * dO of each query: dS = P * (dP - delta). As
            # log-sum-exp and output are those of all keys, so are P and delta, whatever block this is.
            weights = (scores - log_sum_exp).exp().masked_fill_(~_mask(block, tile, options.window), 0.0)
            grad_weights = (grad @ v.transpose(2, 3)).to(scores.dtype)
            delta = (grad.to(scores.dtype) * output.to(scores.dtype)).sum(-1, keepdim=True)
            grad_scores = weights * (grad_weights - delta)
            if options.softcap is not None:
                grad_scores *= 1 - (scores / options.softcap).square()
            grad_scores = (grad_scores * _scaling(q, options)).to(q.dtype)
            dk, dv = grad_scores.transpose(2, 3) @ q, weights.to(v.dtype).transpose(2, 3) @ grad
            grad_query[tile.queries] = _rows(grad_scores @ k)
            grad_key[tile.keys] += _rows(_sum_groups(dk, num_key_heads))
            grad_value[tile.keys] += _rows(_sum_groups(dv, num_key_heads))
        return grad_query, grad_key, grad_value

    def _scores(self, query: Tensor, key: Tensor, options: AttentionOptions) -> Tensor:
        """(1, A, rows, rows) in float32 at least, soft-capped."""
        scores = query @ key.transpose(2, 3) * _scaling(query, options)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores if options.softcap is None else options.softcap * torch.tanh(scores / options.softcap)


class _ScoreTile(NamedTuple):
    """Rows of a block whose scores are computed at a time."""

    queries: slice
    keys: slice


def _tiles(block: Block, window: int | None, num_heads: int) -> Iterator[_ScoreTile]:
    """Tiles of at most `LARGEST_TILE` scores (a row of scores, where that is more), which hold all keys that are seen.

    A sample whose scores are fewer is one tile.
    """
    first_query, first_key = 0, 0
    for query_spans, key_spans in zip(block.queries.spans, block.keys.spans, strict=True):
        num_queries, num_keys = (_num_before(spans, spans[-1][1]) for spans in (query_spans, key_spans))
        if num_heads * num_queries * num_keys <= LARGEST_TILE:
            yield _ScoreTile(slice(first_query, first_query + num_queries), slice(first_key, first_key + num_keys))
        else:
            for begin, end in _row_spans(query_spans, num_keys, window, num_heads):
                row = first_query + _num_before(query_spans, begin)
                unseen = 0 if window is None else _num_before(key_spans, begin - window + 1)
                keys = slice(first_key + unseen, first_key + _num_before(key_spans, end))
                if keys.start < keys.stop:
                    yield _ScoreTile(slice(row, row + end - begin), keys)
        first_query, first_key = first_query + num_queries, first_key + num_keys


def _row_spans(spans: tuple[Span, ...], num_keys: int, window: int | None, num_heads: int) -> Iterator[Span]:
    """The queries' positions in parts so short that the keys which a part sees fit into a tile with it."""
    num_seen = num_keys if window is None else min(num_keys, 2 * window)
    num_rows = max(LARGEST_TILE // (num_heads * num_seen), 1)
    if window is not None:
        num_rows = min(num_rows, window)  # these see fewer than two windows of keys
    for begin, end in spans:
        for first in range(begin, end, num_rows):
            yield first, min(first + num_rows, end)


def _num_before(spans: tuple[Span, ...], position: int) -> int:
    """How many positions of the spans lie before `position`."""
    return sum(min(max(position - begin, 0), end - begin) for begin, end in spans)


def _mask(block: Block, tile: _ScoreTile, window: int | None) -> Tensor:
    """(query rows, key rows), True where the query sees the key."""
    distance = block.queries.positions[tile.queries, None] - block.keys.positions[None, tile.keys]
    return (distance >= 0) & (distance < (window or torch.inf))


def _repeated(by_key: tuple[Tensor, Tensor], tile: _ScoreTile, num_heads: int) -> Iterator[Tensor]:
    """Keys and values of a tile, (rows, K, D), beside the query heads that use them: (1, A, rows, D)."""
    return (repeat_heads(_heads_first(part[tile.keys]), num_heads) for part in by_key)


def _by_sample(block: Block, by_query: tuple[Tensor, ...], by_key: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """For each sample the parts of all tensors, (rows, heads, D) turned to (1, heads, rows, D)."""
    parts = [_heads_first(part).split(block.queries.lengths, dim=2) for part in by_query]
    parts += [_heads_first(part).split(block.keys.lengths, dim=2) for part in by_key]
    return list(zip(*parts, strict=True))


def _heads_first(part: Tensor) -> Tensor:
    """(rows, heads, D) → (1, heads, rows, D)"""
    return part.transpose(0, 1)[None]


def _rows(part: Tensor) -> Tensor:
    """(1, heads, rows, D) → (rows, heads, D)"""
    return part[0].transpose(0, 1)


def _sum_groups(grad: Tensor, num_key_heads: int) -> Tensor:
    """(1, A, rows, D) → (1, K, rows, D): a key head's gradient comes from all query heads that use it."""
    return grad if grad.shape[1] == num_key_heads else grad.unflatten(1, (num_key_heads, -1)).sum(2)


def _scaling(query: Tensor, options: AttentionOptions) -> float:
    return query.shape[-1] ** -0.5 if options.scaling is None else options.scaling


def _borders(block: Block) -> Borders:
    queries, keys = block.queries, block.keys
    return queries.borders, keys.borders, max(queries.lengths), max(keys.lengths)
