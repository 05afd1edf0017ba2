"""Plain causal attention of a pack on the CPU as one node of the graph; sample by sample, forward and backward.

In bfloat16 and float32 our own kernel computes it: short samples in half of torch's time or less, long ones in less
than torch's (benchmarks/LOG.md). It also takes samples that share a prompt. In other precisions, for other sizes of
heads and without a compiler torch's kernel computes it. Neither keeps anything of the size of the scores.

Shapes: T tokens of the pack, L of one sample, A query heads, K key heads (A = K * G), D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from openrlhf.engine.torch_operators import cpu_flash, cpu_flash_backward
from openrlhf.models.attention.dense import AttentionOptions, repeat_heads
from openrlhf.models.cpu_kernels import attention as cpu_attention


def computes(query: Tensor, value: Tensor, options: AttentionOptions) -> bool:
    """Whether this module can stand in for torch's attention."""
    is_simple = options.is_plain and options.window is None and options.dropout == 0
    return is_simple and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


def computes_shared_prompts(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> bool:
    """Whether `attend_pack` may be given samples that go on from a prompt; heads first, as there."""
    return computes(query, value, options) and cpu_attention.computes(query, key, value)


def attend_pack(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    scaling: float | None,
    prompt_of: Sequence[int | None] | None = None,
) -> Tensor:
    """Causal attention within each sample.

    Args:
        query: (A, T, D); key and value: (K, T, D).
        lengths: tokens of each sample; they add up to T.
        scaling: of query · key; None: 1 / sqrt(D).
        prompt_of: see `cpu_kernels.attention.forward`; None where `computes_shared_prompts` says no.

    Returns:
        (T, A, D), contiguous.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if cpu_attention.computes(query, key, value):
        return _ByOurKernel.apply(query, key, value, lengths, scale, prompt_of)
    assert prompt_of is None, "torch's kernel knows no shared prompts"
    return _ByTorchsKernel.apply(query, key, value, lengths, scale)


class _ByOurKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *how: Any) -> Tensor:
        output, log_sums = cpu_attention.forward(query, key, value, *how)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.how = how
        return output.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_sums = ctx.saved_tensors
        grad = grads[0].transpose(0, 1)
        found = cpu_attention.backward(grad, query, key, value, output, log_sums, *ctx.how)
        return *found, None, None, None


class _ByTorchsKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
        output = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        log_sums = []
        for rows in _spans(lengths):
            q = query[:, rows]
            sample, log_sum_exp = cpu_flash(q[None], *_repeated(q, key[:, rows], value[:, rows]), True, scale)
            output[rows] = sample[0].transpose(0, 1)
            log_sums.append(log_sum_exp)
        ctx.save_for_backward(query, key, value, output, *log_sums)
        ctx.lengths, ctx.scale = lengths, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        query, key, value, output, *log_sums = ctx.saved_tensors
        into = [torch.empty_like(part) for part in (query, key, value)]
        for rows, log_sum_exp in zip(_spans(ctx.lengths), log_sums, strict=True):
            q = query[:, rows]
            repeated = _repeated(q, key[:, rows], value[:, rows])
            g, o = (part[rows].transpose(0, 1)[None] for part in (grads[0], output))
            # From (A, L, D) to (K, L, D): a key head's gradient comes from all query heads that use it.
            found = cpu_flash_backward(g, q[None], *repeated, o, log_sum_exp, True, ctx.scale)
            for place, part in zip(into, found, strict=True):
                place[:, rows] = part[0].unflatten(0, (place.shape[0], -1)).sum(1)
        return *into, None, None


def _spans(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return repeat_heads(key[None], query.shape[0]), repeat_heads(value[None], query.shape[0])
