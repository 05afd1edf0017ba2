"""Gradients of a bf16 model added to DeepSpeed's float32 sums (ZeRO 1) without copies of all of them.

Reason: DeepSpeed's BF16_Optimizer keeps the sums of each parameter group in one flat tensor. It converts a whole
gradient to float32 to add it: of tied embeddings that is the largest tensor of a step. To average the sums over the
ranks it copies all of them into one tensor, and back, also where there is one rank. The second alone costs 35 ms a step
of case (b), 545 → 583 tokens/s (benchmarks/LOG.md).

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
    "bf16_gradients", "deepspeed", "0.19", applies_to_others=False, without_it="steps take more time and memory"
)
_PIECE = 4 * 2**20  # numbers that are converted at once


def add_without_copies(engine: Any) -> None:
    """For an engine that has a BF16_Optimizer; does nothing to others."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_groups_gradients_flat") and PATCH.is_on():
        optimizer._update_hp_grad = partial(_add_gradient, optimizer, optimizer._update_hp_grad)
        engine.allreduce_and_copy = _average


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
