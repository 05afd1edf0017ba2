"""DeepSpeed's Adam on the CPU as a function of its state: a resumed run updates as an unbroken one, to the bit.

Reason: the operator keeps beta^step from call to call and multiplies it on where a step follows the one before. After a
resume it computes the power anew, which differs in the last bit.

Change: a call with step 0 before each real one, of four numbers that nobody reads, makes the operator compute the power
anew every time. The call goes through torch's own hook before a step; its arguments are those of the operator.

Upstream: none known.
Another version of DeepSpeed: left out, as the operator's arguments may differ; a resumed run on the CPU may then differ
from an unbroken one in the last bit of its weights.
"""

from __future__ import annotations

from typing import Any

import torch

from openrlhf.engine.patches.patch import Patch

PATCH = Patch(
    "cpu_adam_steps", "deepspeed", "0.19", applies_to_others=False, without_it="a resume is not exact to the last bit"
)


def make_steps_independent(optimizer: Any) -> None:
    """For a FusedAdam or DeepSpeedCPUAdam; parameters on an accelerator are left alone: its kernel keeps nothing."""
    if PATCH.is_on():
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
