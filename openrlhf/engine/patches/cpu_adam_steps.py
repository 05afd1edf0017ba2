"""DeepSpeed's Adam on the CPU, made a function of its state: a resumed run then updates as an unbroken one, to the bit.

Its C++ part keeps beta^step from call to call and multiplies it on, where the step follows the one before; after a
resume it computes the power anew, which is another number in the last bit. A call with step 0 before each real one
makes it compute the power anew always.
"""

from __future__ import annotations

from typing import Any

import torch


def make_steps_independent(optimizer: Any) -> None:
    """For a FusedAdam or DeepSpeedCPUAdam; parameters on an accelerator are left alone: its kernel keeps nothing."""
    forget = _forget_cpu_adam if hasattr(optimizer, "ds_opt_adam") else _forget_fused_adam
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: forget(optimizer))


def _forget_fused_adam(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        if any(parameter.device.type == "cpu" for parameter in group["params"]):
            beta1, beta2 = group["betas"]
            lists = [[tensor] for tensor in torch.zeros(4, 1)]
            buffer, mode = optimizer._dummy_overflow_buf, optimizer.adam_w_mode
            optimizer.multi_tensor_adam(1, buffer, lists, 0.0, beta1, beta2, 1.0, 0, mode, False, 0.0)


def _forget_cpu_adam(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        tensors = torch.zeros(4, 1).unbind()
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, 0, 0.0, beta1, beta2, 1.0, 0.0, False, *tensors)
