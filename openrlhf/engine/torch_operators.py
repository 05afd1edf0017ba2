"""Operators of torch that have no public name: attention with its log-sum-exp, and its gradient; AdamW; float16.

torch's public attention has neither the log-sum-exp, by which blocks of keys are merged, nor a gradient of one block.

Shapes: A query heads, K key heads, Q query rows, R key rows, D head size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Borders = tuple[Tensor, Tensor, int, int]  # cu_seqlens of queries and of keys, and the longest sample of each


def cpu_flash(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """query (1, A, Q, D), key and value (1, A, R, D) → output (1, A, Q, D), log-sum-exp (1, A, Q)."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return operator(query, key, value, 0.0, is_causal, scale=scale)


def cpu_flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum_exp: Tensor,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; shapes as of `cpu_flash`."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return operator(grad, query, key, value, output, log_sum_exp, 0.0, is_causal, scale=scale)


def fewer_key_heads(num_query_heads: int, num_key_heads: int) -> dict[str, Any]:
    """How torch's variable-length attention is told of fewer key heads: by a keyword, but not in torch 2.11."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": num_query_heads != num_key_heads} if _takes(varlen_attn, "enable_gqa") else {}


@functools.cache
def _takes(function: Callable[..., object], parameter: str) -> bool:
    return parameter in inspect.signature(function).parameters


def cuda_flash(
    query: Tensor, key: Tensor, value: Tensor, borders: Borders, is_causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """query (Q, A, D), key and value (R, K, D), contiguous → output (Q, A, D), log-sum-exp (A, Q)."""
    import torch.nn.attention.varlen  # noqa: F401  (registers the operators)

    operator = torch.ops.torch_attn._varlen_attn
    heads = fewer_key_heads(query.shape[1], key.shape[1])
    output, log_sum_exp, _ = operator(query, key, value, *borders, is_causal=is_causal, scale=scale, **heads)
    return output, log_sum_exp


def cuda_flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum_exp: Tensor,
    borders: Borders,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; shapes as of `cuda_flash`."""
    no_dropout_state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    operator = torch.ops.torch_attn._varlen_attn_backward
    return operator(grad, query, key, value, output, log_sum_exp, *borders, is_causal, no_dropout_state, scale)


def fused_adamw(
    parameters: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    squares: list[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """AdamW's update number `step` (from 1), in place. Each list holds tensors of one dtype on one device."""
    steps = [torch.tensor(float(step), device=parameters[0].device)] * len(parameters)
    torch._fused_adamw_(
        parameters, grads, moments, squares, [], steps,
        lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
    )  # fmt: skip


def cpu_computes_fp16() -> bool:
    """The question that DeepSpeed asks: whether torch's kernels for the CPU know float16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def num_compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    import torch._dynamo  # here alone: it takes a second to load

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
