"""Gradients averaged over the ranks, and added to DeepSpeed's float32 sums, without copies of all of them.

Reason: to average gradients over the ranks, DeepSpeed's engine copies them into one tensor and back where there is no
ZeRO, and where there is its BF16_Optimizer; also on a single rank. That optimizer keeps the sums of each parameter
group in one flat tensor already, and converts a whole gradient to float32 to add it: of tied embeddings that is the
largest tensor of a step. The copies cost 35 ms a step of case (b), 545 → 583 tokens/s (benchmarks/LOG.md), and in
float32 as much memory as the gradient of the embeddings.

Change: two methods of the engine and of its optimizer, of these two objects alone. The numbers are the same to the bit.

Upstream: none known; the sums in the backward pass came with https://github.com/deepspeedai/DeepSpeed/pull/4975.
Another version of DeepSpeed: left out; a step takes more time and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce

from openrlhf.engine.patches.patch import Patch

PATCH = Patch(
    "gradient_copies", "deepspeed", "0.19", applies_to_others=False, without_it="steps take more time and memory"
)
_PIECE = 4 * 2**20  # numbers that are converted at once


def add_without_copies(engine: Any) -> None:
    """For an engine that has a BF16_Optimizer, or no ZeRO."""
    if not PATCH.is_on():
        return
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_groups_gradients_flat"):
        optimizer._update_hp_grad = partial(_add_gradient, optimizer, optimizer._update_hp_grad)
        engine.allreduce_and_copy = _average
    else:
        engine.allreduce_and_copy = partial(_average_with_others, engine.allreduce_and_copy)


@torch.no_grad()
def _add_gradient(
    optimizer: Any, as_deepspeed: Callable[..., None], parameter: Any, group: int, index: int, clear_lp_grads: bool
) -> None:
    if parameter.grad is None or optimizer.autoep_folding_tp_group is not None:
        return as_deepspeed(parameter, group, index, clear_lp_grads)
    total, gradient = optimizer.fp32_groups_gradients[group][index], parameter.grad.view(-1)
    if optimizer.fp32_groups_has_gradients[group][index]:
        for into, piece in zip(total.split(_PIECE), gradient.split(_PIECE), strict=True):
            into.add_(piece)
    else:
        total.copy_(gradient)
    parameter._hp_grad = total
    optimizer.fp32_groups_has_gradients[group][index] = True
    if clear_lp_grads:
        parameter.grad.zero_()
    return None


def _average(sums: list[Tensor], group: ProcessGroup, num_ranks: float) -> None:
    """Over the ranks, in place."""
    if num_ranks > 1:
        for tensor in sums:
            all_reduce(tensor, group=group)
            tensor.mul_(1.0 / num_ranks)


def _average_with_others(
    as_deepspeed: Callable[..., None], gradients: list[Tensor], group: ProcessGroup, num_ranks: float
) -> None:
    """There may be many gradients: where they are sent, DeepSpeed's flat tensor is faster."""
    if num_ranks > 1:
        as_deepspeed(gradients, group, num_ranks)
