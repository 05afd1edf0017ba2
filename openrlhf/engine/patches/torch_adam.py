"""DeepSpeed's AdamW with torch's fused kernel, where DeepSpeed's own cannot be compiled.

Reason: DeepSpeed compiles the operators of FusedAdam and DeepSpeedCPUAdam when they are first used. A GPU machine whose
CUDA came with pip has no nvcc, and the run would end there. torch brings kernels of the same update, compiled.

Change: an object with the operators' functions is put into DeepSpeed's own table of loaded operators,
`OpBuilder._loaded_ops`. Classes, states and checkpoints stay DeepSpeed's.

Upstream: https://github.com/deepspeedai/DeepSpeed/issues/7452 (of the import without a toolkit alone).
Another version of DeepSpeed: left out, as the functions' arguments may differ.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from openrlhf.engine.patches.patch import Patch
from openrlhf.engine.torch_operators import fused_adamw

PATCH = Patch("torch_adam", "deepspeed", "0.19", applies_to_others=False, without_it="AdamW needs a compiler")


class TorchAdam:
    """The functions of DeepSpeed's operators `fused_adam` and `cpu_adam`. `why`: DeepSpeed's is not used."""

    def __init__(self, why: str):
        self.why = why

    def multi_tensor_adam(
        self,
        chunk_size: int,
        buffer: Tensor,
        lists: list[list[Tensor]],
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        step: int,
        adamw_mode: int,
        bias_correction: int,
        weight_decay: float,
    ) -> None:
        """`lists`: gradients, parameters, first and second moments. Step 0 asks to forget: torch keeps nothing."""
        if step > 0:
            assert adamw_mode
            assert bias_correction
            grads, parameters, moments, squares = lists
            fused_adamw(parameters, grads, moments, squares, step, lr, beta1, beta2, eps, weight_decay)

    def adam_update(self, optimizer_id: int, step: int, *numbers_and_tensors: Any) -> None:
        lr, beta1, beta2, eps, weight_decay, bias_correction, parameter, grad, moment, square = numbers_and_tensors
        lists = [[grad.to(parameter.dtype)], [parameter], [moment], [square]]
        self.multi_tensor_adam(0, grad, lists, lr, beta1, beta2, eps, step, True, bias_correction, weight_decay)

    def create_adam(self, *arguments: Any) -> None:
        """Nothing is kept for an optimizer."""

    def destroy_adam(self, optimizer_id: int) -> None:
        """Nothing was kept."""


def use_torchs(operator: str, why: str) -> bool:
    """For optimizers made from now on. Returns False where the patch is off."""
    if not PATCH.is_on():
        return False
    from deepspeed.ops.op_builder.builder import OpBuilder

    OpBuilder._loaded_ops[operator] = TorchAdam(why)
    return True


def use_deepspeeds(operator: str) -> None:
    """Takes torch's out of the table, if it is there."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    if isinstance(OpBuilder._loaded_ops.get(operator), TorchAdam):
        del OpBuilder._loaded_ops[operator]
