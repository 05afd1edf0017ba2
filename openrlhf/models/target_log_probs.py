"""Log-probs of target tokens from hidden states, without ever holding the logits of all of them.

The logits are computed tile by tile (some rows × some of the vocabulary), folded into a running log-sum-exp and thrown
away; the backward pass computes each tile again. A tile's float32 logits take `tile_bytes`; in a half-precision model
its half-precision copy comes on top. The rest is of the size of the hidden states and of the weight's gradient.

Shapes: N target tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from openrlhf.models.logit_transform import PLAIN, LogitTransform

TILE_BYTES_CPU = 8 * 2**20  # about what its caches hold: larger tiles are slower
TILE_BYTES_ACCELERATOR = 256 * 2**20
_MAX_TILE_ROWS = 4096  # more rows than this no longer make the products faster, but narrow the tile
_MIN_TILE_COLUMNS = 256


def target_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    transform: LogitTransform = PLAIN,
    tile_bytes: int | None = None,
) -> Tensor:
    """log softmax(transform(hidden @ weight.T + bias)) at the target ids.

    Args:
        hidden: (N, H), N at least 1.
        weight: (V, H); bias: (V,) or None.
        target_ids: (N,) int64.
        tile_bytes: size of one tile of float32 logits; by default 8 MiB on the CPU, 256 MiB elsewhere.

    Returns:
        (N,) float32, or float64 where `hidden` is float64.
    """
    if tile_bytes is None:
        tile_bytes = TILE_BYTES_CPU if hidden.device.type == "cpu" else TILE_BYTES_ACCELERATOR
    return _TargetLogProbs.apply(hidden.to(weight.dtype), weight, bias, target_ids, transform, tile_bytes)


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        transform: LogitTransform,
        tile_bytes: int,
    ) -> Tensor:
        row_spans, column_spans = _tiles(hidden.shape[0], weight.shape[0], tile_bytes)
        log_sum_exp = _new_sums(hidden, hidden.shape[0]).fill_(-torch.inf)
        target_logits = torch.zeros_like(log_sum_exp)
        for columns in column_spans:
            for rows in row_spans:
                logits = _tile_logits(hidden[rows], weight, bias, columns, transform)
                is_inside, place = _place_in_tile(target_ids[rows], columns)
                at_target = logits.gather(1, place[:, None])[:, 0]
                target_logits[rows] = torch.where(is_inside, at_target, target_logits[rows])
                log_sum_exp[rows] = torch.logaddexp(log_sum_exp[rows], _log_sum_exp_(logits))
        # The weight is saved as the very Parameter: ZeRO-3 empties it after the forward pass and fills it again before
        # the backward pass of the module that called this.
        ctx.save_for_backward(hidden, weight, bias, target_ids, log_sum_exp)
        ctx.transform, ctx.tile_bytes = transform, tile_bytes
        return target_logits - log_sum_exp

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target_ids, log_sum_exp = ctx.saved_tensors
        (grad_log_probs,) = grads
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        row_spans, column_spans = _tiles(hidden.shape[0], weight.shape[0], ctx.tile_bytes)
        grad_hidden = _new_sums(hidden, *hidden.shape) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        for columns in column_spans:
            num_columns = columns.stop - columns.start
            weight_sum = _new_sums(weight, num_columns, weight.shape[1]) if needs_weight else None
            bias_sum = _new_sums(weight, num_columns) if needs_bias else None
            for rows in row_spans:
                logits = _tile_logits(hidden[rows], weight, bias, columns, ctx.transform)
                grad = _tile_gradient(
                    logits, log_sum_exp[rows], target_ids[rows], columns, grad_log_probs[rows], ctx.transform
                )
                del logits
                if bias_sum is not None:
                    bias_sum += grad.sum(0)
                grad = grad.to(weight.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] += grad @ weight[columns]
                if weight_sum is not None:
                    weight_sum += grad.t() @ hidden[rows]
            if grad_weight is not None and weight_sum is not None:
                grad_weight[columns] = weight_sum
            if grad_bias is not None and bias_sum is not None:
                grad_bias[columns] = bias_sum
        grad_hidden = grad_hidden.to(hidden.dtype) if grad_hidden is not None else None
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _tiles(num_rows: int, num_columns: int, tile_bytes: int) -> tuple[list[slice], list[slice]]:
    tile_rows = min(num_rows, _MAX_TILE_ROWS)
    tile_columns = max(_MIN_TILE_COLUMNS, tile_bytes // (4 * tile_rows))
    return list(_spans(num_rows, tile_rows)), list(_spans(num_columns, tile_columns))


def _spans(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _new_sums(like: Tensor, *shape: int) -> Tensor:
    """Zeros to sum in: float32, or float64 for float64 inputs."""
    return torch.zeros(shape, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def _tile_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: slice, transform: LogitTransform
) -> Tensor:
    """(rows, columns) logits in float32 (or float64), a tensor of their own."""
    output = hidden @ weight[columns].t()
    if bias is not None:
        output += bias[columns]
    return transform.apply_(output.to(torch.promote_types(output.dtype, torch.float32)))


def _place_in_tile(target_ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in the tile's columns, and where; a harmless place for the others."""
    is_inside = (target_ids >= columns.start) & (target_ids < columns.stop)
    return is_inside, (target_ids - columns.start).clamp(0, columns.stop - columns.start - 1)


def _log_sum_exp_(logits: Tensor) -> Tensor:
    """(rows,) log-sum-exp; destroys the logits."""
    highest = logits.amax(1, keepdim=True)
    return logits.sub_(highest).exp_().sum(1).log_().add_(highest[:, 0])


def _tile_gradient(
    logits: Tensor,
    log_sum_exp: Tensor,
    target_ids: Tensor,
    columns: slice,
    grad_log_probs: Tensor,
    transform: LogitTransform,
) -> Tensor:
    """Gradient at the head's output: grad * (1[target] - softmax) * slope. Destroys the logits."""
    slope = transform.slope(logits)
    grad = logits.sub_(log_sum_exp[:, None]).exp_().neg_()
    is_inside, place = _place_in_tile(target_ids, columns)
    grad.scatter_add_(1, place[:, None], is_inside[:, None].to(grad.dtype))
    return grad.mul_(grad_log_probs[:, None]).mul_(slope)
