"""Gradients of a bf16 model on their way into DeepSpeed's float32 sums (ZeRO 1), without copies of all of them.

DeepSpeed's BF16_Optimizer keeps the sums of each parameter group in one flat tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce

_PIECE = 4 * 2**20  # numbers that are converted at once


def spare_copies(engine: Any) -> None:
    """Replaces two ways of DeepSpeed's that hold gradients twice, where the engine has a BF16_Optimizer.

    It converts a whole gradient to float32 to add it: of tied embeddings that is the largest tensor of a step. And it
    copies all sums into one tensor, and back, to average them over the ranks; even where there is one.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_groups_gradients_flat"):
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
