"""The head's logits in tiles: what the softmax needs of them, and their gradients, without ever holding all of them.

A tile is some rows (target tokens) × some columns of the vocabulary. It is computed, folded into running statistics
(log-sum-exp, likeliest token, entropy) and thrown away; for the gradients each tile is computed again, unless all of
them fit into the memory that may be kept. A tile's float32 logits take `tile_bytes`; in a half-precision model its
half-precision copy comes on top, or stands alone where the C++ kernel reads it (on the CPU). The rest is of the size of
the hidden states and of the weight's gradient.

Shapes: N target tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from openrlhf.models.cpu_kernels import log_probs as cpu_log_probs

TILE_BYTES_CPU = 8 * 2**20  # about what its caches hold: larger tiles are slower
TILE_BYTES_ACCELERATOR = 256 * 2**20
_MAX_TILE_ROWS = 4096  # more rows than this no longer make the products faster, but narrow the tile
_MIN_TILE_COLUMNS = 256
_TILE_COLUMNS_STEP = 64  # products of other widths are a tenth slower
_ENTROPY_PARTS = 16  # the entropy copies this part of a tile at a time

KeptTiles = dict[tuple[int, int], Tensor]  # the head's outputs by first row and first column


@dataclass(frozen=True)
class LogitTransform:
    """logits = softcap(scale * x) / temperature, with softcap(y) = cap * tanh(y / cap), or y where `cap` is None."""

    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    def apply_(self, head_output: Tensor) -> Tensor:
        """Turns the head's output into logits, in place."""
        if self.cap is not None:
            return head_output.mul_(self.scale / self.cap).tanh_().mul_(self.cap / self.temperature)
        if self.scale != self.temperature:
            head_output.mul_(self.scale / self.temperature)
        return head_output

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d head output, from the logits; a new tensor where it differs between them."""
        steepest = self.scale / self.temperature
        if self.cap is None:
            return steepest
        return (logits * (self.temperature / self.cap)).square_().neg_().add_(1.0).mul_(steepest)


PLAIN = LogitTransform()  # the head's output is the logits


@dataclass(frozen=True)
class TiledHead:
    """A head, the hidden states (N, H) that it is given, and the target ids (N,)."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target_ids: Tensor
    transform: LogitTransform
    tile_bytes: int | None  # None: 8 MiB on the CPU, 256 MiB elsewhere

    @property
    def is_on_cpu(self) -> bool:
        return self.hidden.device.type == "cpu"

    @property
    def is_for_kernel(self) -> bool:
        """Whether the C++ kernel computes what comes after the head's output; if not, torch does."""
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


class TargetStatistics(NamedTuple):
    """The results of a scan of the vocabulary for each target; (N,), float32 or float64 as the logits are summed."""

    log_sum_exp: Tensor
    target_logits: Tensor
    is_likeliest: Tensor  # bool: no token has a greater logit, and none with a lower id an equal one
    entropy: Tensor | None  # of the predicted distribution, in nats


# --- forward: one scan of the vocabulary


def scan(head: TiledHead, kept: KeptTiles | None, with_entropy: bool) -> TargetStatistics:
    """Computes every tile once; the head's outputs go into `kept` if there is one."""
    row_spans, column_spans = head.tiles()
    running: cpu_log_probs.RunningStatistics | _RunningStatistics
    if head.is_for_kernel:
        running = cpu_log_probs.RunningStatistics(head.target_ids, with_entropy)
    else:
        running = _RunningStatistics(head, with_entropy, outputs_are_kept=kept is not None)
    for columns in column_spans:  # from low ids to high ones: of equal logits the first is the likeliest
        for rows in row_spans:
            output = head.output(rows, columns)
            if kept is not None:
                kept[rows.start, columns.start] = output
            running.fold(rows, columns, output)
    return TargetStatistics(running.log_sum_exp, running.target_logits, running.is_likeliest, running.entropy)


class _RunningStatistics:
    """The statistics of the part of the vocabulary that has been folded in; columns come in ascending order."""

    def __init__(self, head: TiledHead, with_entropy: bool, outputs_are_kept: bool):
        self._head, self._outputs_are_kept = head, outputs_are_kept
        self.log_sum_exp = _new_sums(head.hidden, head.hidden.shape[0]).fill_(-torch.inf)
        self._highest = self.log_sum_exp.clone()
        self.target_logits = torch.zeros_like(self.log_sum_exp)
        self.is_likeliest = torch.zeros_like(self.log_sum_exp, dtype=torch.bool)
        self.entropy = torch.zeros_like(self.log_sum_exp) if with_entropy else None

    def fold(self, rows: slice, columns: slice, output: Tensor) -> None:
        """Args: output: (rows, columns) of the head; left as it is where outputs are kept."""
        logits = self._head.logits(output, copy=self._outputs_are_kept)
        is_inside, place = _place_in_tile(self._head.target_ids[rows], columns)
        at_target = logits.gather(1, place[:, None])[:, 0]
        self.target_logits[rows] = torch.where(is_inside, at_target, self.target_logits[rows])
        highest, is_first = _highest(logits, place, at_target)
        is_exceeded = highest > self._highest[rows]  # else the likeliest token stands in an earlier tile
        self.is_likeliest[rows] = torch.where(is_exceeded, is_inside & is_first, self.is_likeliest[rows])
        self._highest[rows] = torch.maximum(self._highest[rows], highest)
        self._add_exponentials(rows, logits, highest)

    def _add_exponentials(self, rows: slice, logits: Tensor, highest: Tensor) -> None:
        """Destroys the logits."""
        before = self.log_sum_exp[rows]
        if self.entropy is None:
            self.log_sum_exp[rows] = torch.logaddexp(before, _log_sum_exp_(logits, highest))
            return
        tile, tile_entropy = _log_sum_exp_and_entropy_(logits, highest)
        # Entropy is additive over a choice in two stages: first old part or new tile, then a token within it.
        share_before, share_tile = torch.stack([before, tile]).softmax(0)
        within = share_before * self.entropy[rows] + share_tile * tile_entropy
        self.entropy[rows] = within + torch.special.entr(share_before) + torch.special.entr(share_tile)
        self.log_sum_exp[rows] = torch.logaddexp(before, tile)


def _highest(logits: Tensor, place: Tensor, at_place: Tensor) -> tuple[Tensor, Tensor]:
    """(rows,) the greatest logit, and whether it stands at `place` and at none before. Args: at_place: logits there."""
    if logits.device.type != "cpu":
        highest, first = logits.max(1)
        return highest, first == place
    highest = logits.amax(1)  # a search for the place takes a CPU ten times as long: only the rows in question get one
    is_first = at_place == highest
    rows = is_first.nonzero()[:, 0]
    is_first[rows] = logits[rows].argmax(1) == place[rows]
    return highest, is_first


def _log_sum_exp_(logits: Tensor, highest: Tensor) -> Tensor:
    """(rows,) log-sum-exp; destroys the logits. Args: highest: (rows,) the greatest of each row."""
    return logits.sub_(highest[:, None]).exp_().sum(1).log_().add_(highest)


def _log_sum_exp_and_entropy_(logits: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """(rows,) log-sum-exp and entropy of the softmax over the tile; destroys the logits.

    With d = logit - highest: entropy = log(sum of exp(d)) - (sum of exp(d) * d) / (sum of exp(d)).
    """
    logits.sub_(highest[:, None])
    lowest = torch.finfo(logits.dtype).min  # of a logit of minus infinity, exp(d) * d is 0
    moments = []
    for part in logits.split(-(-logits.shape[0] // _ENTROPY_PARTS)):  # a copy of the whole tile would take its size
        differences = part.clamp(min=lowest)
        moments.append(torch.linalg.vecdot(differences, part.exp_()))
    sums = logits.sum(1)
    entropy = sums.log() - torch.cat(moments) / sums
    return sums.log_().add_(highest), entropy


# --- backward: the tiles once more


def gradients(
    head: TiledHead,
    log_sum_exp: Tensor,
    grad_log_probs: Tensor,
    needed: tuple[bool, ...],
    kept: KeptTiles | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weight and bias where they are `needed`; empties `kept`.

    Args: log_sum_exp, grad_log_probs: (N,).
    """
    hidden, weight, bias = head.hidden, head.weight, head.bias
    row_spans, column_spans = head.tiles()
    grad_hidden = _new_sums(hidden, *hidden.shape) if needed[0] else None
    grad_weight = torch.empty_like(weight) if needed[1] else None
    grad_bias = torch.empty_like(bias) if bias is not None and needed[2] else None
    for columns in column_spans if any(needed) else []:
        num_columns = columns.stop - columns.start
        # With several tiles one above the other, a column's gradient is summed over them in float32 and rounded once.
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
                grad_hidden[rows].add_(grad @ weight[columns])  # += would copy the sums into themselves
            if weight_sum is not None:
                weight_sum += grad.t() @ hidden[rows]
            elif grad_weight is not None:
                torch.mm(grad.t(), hidden[rows], out=grad_weight[columns])
        if grad_weight is not None and weight_sum is not None:
            grad_weight[columns] = weight_sum
        if grad_bias is not None and bias_sum is not None:
            grad_bias[columns] = bias_sum
    return grad_hidden.to(hidden.dtype) if grad_hidden is not None else None, grad_weight, grad_bias


def _tile_gradient(
    head: TiledHead, output: Tensor, rows: slice, columns: slice, log_sum_exp: Tensor, grad_log_probs: Tensor
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


def _spans(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _new_sums(like: Tensor, *shape: int) -> Tensor:
    """Zeros to sum in: float32, or float64 for float64 inputs."""
    return torch.zeros(shape, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def _place_in_tile(target_ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Whether each target lies in the tile's columns, and where; a harmless place for the others."""
    is_inside = (target_ids >= columns.start) & (target_ids < columns.stop)
    return is_inside, (target_ids - columns.start).clamp(0, columns.stop - columns.start - 1)
