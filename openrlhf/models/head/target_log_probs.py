"""Log-probs of target tokens from hidden states, without ever holding the logits of all of them.

The logits are computed tile by tile (some rows × some of the vocabulary), folded into a running log-sum-exp and thrown
away; for the gradients each tile is computed again, unless all of them in the model's precision take no more than
`kept_bytes` and their weights are known at once. A tile's float32 logits take `tile_bytes`; in a half-precision model
its half-precision copy comes on top, or stands alone where our kernel reads it (bfloat16 on the CPU). The rest is of
the size of the hidden states and of the weight's gradient.

Shapes: N target tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openrlhf.models.cpu_kernels import log_probs as cpu_log_probs
from openrlhf.models.head.logit_transform import PLAIN, LogitTransform

TILE_BYTES_CPU = 8 * 2**20  # about what its caches hold: larger tiles are slower
TILE_BYTES_ACCELERATOR = 256 * 2**20
KEPT_BYTES_CPU = 128 * 2**20
KEPT_BYTES_ACCELERATOR = 512 * 2**20
_MAX_TILE_ROWS = 4096  # more rows than this no longer make the products faster, but narrow the tile
_MIN_TILE_COLUMNS = 256
_TILE_COLUMNS_STEP = 64  # products of other widths are a tenth slower


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
    return _TargetLogProbs.apply(hidden.to(weight.dtype), weight, bias, target_ids, transform, tile_bytes)


def weighted_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    target_weights: Tensor,
    transform: LogitTransform = PLAIN,
    tile_bytes: int | None = None,
    kept_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The log-probs of `target_log_probs`, without a gradient, and sum(target_weights * log_probs), with one.

    The gradients are computed with the values, as the weights are known; the backward pass only scales them. That saves
    the second computation of the logits where they may be kept. In float16 they would vanish, as the scale of the loss
    comes too late: give those models `target_log_probs`.

    Args:
        target_weights: (N,) float32.
        kept_bytes: how much logits may take from their sum to their gradient; by default 128 MiB on the CPU, 512 MiB
            elsewhere.
    """
    return _WeightedLogProbs.apply(
        hidden.to(weight.dtype), weight, bias, target_ids, target_weights, transform, tile_bytes, kept_bytes
    )


@dataclass(frozen=True)
class _Head:
    """The arguments that both forms share."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target_ids: Tensor
    transform: LogitTransform
    tile_bytes: int | None

    @property
    def is_on_cpu(self) -> bool:
        return self.hidden.device.type == "cpu"

    @property
    def is_for_kernel(self) -> bool:
        """Whether our kernel computes what comes after the head's output; if not, torch does."""
        return self.bias is None and self.transform == PLAIN and cpu_log_probs.computes(self.weight)

    def tiles(self) -> tuple[list[slice], list[slice]]:
        """Spans of rows, spans of columns."""
        tile_bytes = self.tile_bytes or (TILE_BYTES_CPU if self.is_on_cpu else TILE_BYTES_ACCELERATOR)
        tile_rows = min(self.hidden.shape[0], _MAX_TILE_ROWS)
        tile_columns = tile_bytes // (4 * tile_rows) // _TILE_COLUMNS_STEP * _TILE_COLUMNS_STEP
        tile_columns = max(_MIN_TILE_COLUMNS, tile_columns)
        return list(_spans(self.hidden.shape[0], tile_rows)), list(_spans(self.weight.shape[0], tile_columns))

    def output(self, rows: slice, columns: slice) -> Tensor:
        """(rows, columns) of what the head puts out, in the model's precision."""
        output = self.hidden[rows] @ self.weight[columns].t()
        if self.bias is not None:
            output += self.bias[columns]
        return output

    def logits(self, output: Tensor, copy: bool) -> Tensor:
        """The output's logits in float32 (or float64); a tensor of their own if `copy`, else perhaps the output's."""
        return self.transform.apply_(output.to(torch.promote_types(output.dtype, torch.float32), copy=copy))


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        transform: LogitTransform,
        tile_bytes: int | None,
    ) -> Tensor:
        head = _Head(hidden, weight, bias, target_ids, transform, tile_bytes)
        log_sum_exp, target_logits = _scan(head, kept=None)
        # The weight is saved as the very Parameter: ZeRO-3 empties it after the forward pass and fills it again before
        # the backward pass of the module that called this.
        ctx.save_for_backward(hidden, weight, bias, target_ids, log_sum_exp)
        ctx.transform, ctx.tile_bytes = transform, tile_bytes
        return target_logits - log_sum_exp

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target_ids, log_sum_exp = ctx.saved_tensors
        head = _Head(hidden, weight, bias, target_ids, ctx.transform, ctx.tile_bytes)
        return *_gradients(head, log_sum_exp, grads[0], ctx.needs_input_grad, kept=None), None, None, None


class _WeightedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        target_weights: Tensor,
        transform: LogitTransform,
        tile_bytes: int | None,
        kept_bytes: int | None,
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden, weight, bias, target_ids, transform, tile_bytes)
        if kept_bytes is None:
            kept_bytes = KEPT_BYTES_CPU if head.is_on_cpu else KEPT_BYTES_ACCELERATOR
        fits = hidden.shape[0] * weight.shape[0] * hidden.element_size() <= kept_bytes
        kept: dict[tuple[int, int], Tensor] | None = {} if fits and any(ctx.needs_input_grad) else None
        log_sum_exp, target_logits = _scan(head, kept)
        log_probs = target_logits - log_sum_exp
        ctx.mark_non_differentiable(log_probs)
        ctx.gradients = _gradients(head, log_sum_exp, target_weights, ctx.needs_input_grad, kept)
        return log_probs, (log_probs * target_weights).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients are scaled in place: there is one backward pass"
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if gradient is None else gradient.mul_(grads[1]) for gradient in gradients]
        return *scaled, None, None, None, None, None


def _scan(head: _Head, kept: dict[tuple[int, int], Tensor] | None) -> tuple[Tensor, Tensor]:
    """(N,) log-sum-exp and (N,) target logits; the head's outputs go into `kept` if there is one."""
    row_spans, column_spans = head.tiles()
    sums = cpu_log_probs.RunningSums(head.target_ids) if head.is_for_kernel else _RunningSums(head, kept is not None)
    for columns in column_spans:
        for rows in row_spans:
            output = head.output(rows, columns)
            if kept is not None:
                kept[rows.start, columns.start] = output
            sums.fold(rows, columns, output)
    return sums.log_sum_exp, sums.target_logits


class _RunningSums:
    """Log-sum-exp and target logits of N rows, as tiles are folded in. All (N,) float32, or float64 as the outputs."""

    def __init__(self, head: _Head, outputs_are_kept: bool):
        self._head, self._outputs_are_kept = head, outputs_are_kept
        self.log_sum_exp = _new_sums(head.hidden, head.hidden.shape[0]).fill_(-torch.inf)
        self.target_logits = torch.zeros_like(self.log_sum_exp)

    def fold(self, rows: slice, columns: slice, output: Tensor) -> None:
        """Args: output: (rows, columns) of the head; left as it is where outputs are kept."""
        logits = self._head.logits(output, copy=self._outputs_are_kept)
        is_inside, place = _place_in_tile(self._head.target_ids[rows], columns)
        at_target = logits.gather(1, place[:, None])[:, 0]
        self.target_logits[rows] = torch.where(is_inside, at_target, self.target_logits[rows])
        self.log_sum_exp[rows] = torch.logaddexp(self.log_sum_exp[rows], _log_sum_exp_(logits))


def _gradients(
    head: _Head,
    log_sum_exp: Tensor,
    grad_log_probs: Tensor,
    needed: tuple[bool, ...],
    kept: dict[tuple[int, int], Tensor] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weight and bias where they are `needed`; empties `kept`."""
    hidden, weight, bias = head.hidden, head.weight, head.bias
    row_spans, column_spans = head.tiles()
    grad_hidden = _new_sums(hidden, *hidden.shape) if needed[0] else None
    grad_weight = torch.empty_like(weight) if needed[1] else None
    grad_bias = torch.empty_like(bias) if bias is not None and needed[2] else None
    for columns in column_spans if any(needed) else []:
        num_columns = columns.stop - columns.start
        is_sum = grad_weight is not None and len(row_spans) > 1
        weight_sum = _new_sums(weight, num_columns, weight.shape[1]) if is_sum else None
        bias_sum = _new_sums(weight, num_columns) if grad_bias is not None else None
        for rows in row_spans:
            output = head.output(rows, columns) if kept is None else kept.pop((rows.start, columns.start))
            grad = _tile_gradient(head, output, rows, columns, log_sum_exp[rows], grad_log_probs[rows])
            if bias_sum is not None:
                bias_sum += grad.sum(0)
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] += grad @ weight[columns]
            if weight_sum is not None:
                weight_sum += grad.t() @ hidden[rows]
            elif grad_weight is not None:
                torch.mm(grad.t(), hidden[rows], out=grad_weight[columns])
        if grad_weight is not None and weight_sum is not None:
            grad_weight[columns] = weight_sum
        if grad_bias is not None and bias_sum is not None:
            grad_bias[columns] = bias_sum
    return grad_hidden.to(hidden.dtype) if grad_hidden is not None else None, grad_weight, grad_bias


def _spans(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _new_sums(like: Tensor, *shape: int) -> Tensor:
    """Zeros to sum in: float32, or float64 for float64 inputs."""
    return torch.zeros(shape, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def _place_in_tile(target_ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in the tile's columns, and where; a harmless place for the others."""
    is_inside = (target_ids >= columns.start) & (target_ids < columns.stop)
    return is_inside, (target_ids - columns.start).clamp(0, columns.stop - columns.start - 1)


def _log_sum_exp_(logits: Tensor) -> Tensor:
    """(rows,) log-sum-exp; destroys the logits."""
    highest = logits.amax(1, keepdim=True)
    return logits.sub_(highest).exp_().sum(1).log_().add_(highest[:, 0])


def _tile_gradient(
    head: _Head, output: Tensor, rows: slice, columns: slice, log_sum_exp: Tensor, grad_log_probs: Tensor
) -> Tensor:
    """Gradient at the head's output: grad * (1[target] - softmax) * slope. Destroys the output.

    Args: log_sum_exp, grad_log_probs: those of the rows.
    """
    target_ids = head.target_ids[rows]
    if head.is_for_kernel:
        return cpu_log_probs.gradient_(output, log_sum_exp, target_ids, columns, grad_log_probs)
    logits = head.logits(output, copy=False)
    slope = head.transform.slope(logits)
    grad_log_probs = grad_log_probs.to(logits.dtype)
    grad = logits.sub_(log_sum_exp[:, None]).exp_().mul_(-grad_log_probs[:, None])
    is_inside, place = _place_in_tile(target_ids, columns)
    grad.scatter_add_(1, place[:, None], torch.where(is_inside, grad_log_probs, 0.0)[:, None])
    return grad if isinstance(slope, float) and slope == 1.0 else grad.mul_(slope)
