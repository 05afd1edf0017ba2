"""A step that is given up in the middle: nothing of its gradients stays, and the ranks stand at one collective.

DeepSpeed has no call for it. `engine.zero_grad` clears the gradients of the parameters alone; what was added up in its
own sums, and what a broken pass has left in its buckets, would go into the next update.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def throw_away_gradients(engine: Any) -> None:
    """All that passes since the last update have left, also one that broke off."""
    for parameter in engine.module.parameters():
        parameter.grad = None
    optimizer = engine.optimizer
    if hasattr(optimizer, "_backward_hook_state"):
        optimizer._backward_active_depth = optimizer._remaining_grad_acc_hooks = 0
    if hasattr(optimizer, "clear_hp_grads"):  # BF16_Optimizer: ZeRO 1 with sums in float32, and bf16 without ZeRO
        optimizer.clear_hp_grads()
    elif hasattr(optimizer, "parameter_offload"):
        _throw_away_of_zero_3(optimizer)
    elif hasattr(optimizer, "get_param_coordinator"):  # of a model that is only evaluated
        _give_weights_back(optimizer)
    elif hasattr(optimizer, "averaged_gradients"):
        _throw_away_of_zero_1_and_2(optimizer)


def _throw_away_of_zero_1_and_2(optimizer: Any) -> None:
    for bucket in optimizer.ipg_buckets.values():
        bucket.clear()
    optimizer.extra_large_param_to_reduce.clear()
    optimizer._clear_previous_reduced_grads()
    optimizer._release_ipg_buffers()
    optimizer.params_already_reduced = [False] * len(optimizer.params_already_reduced)
    optimizer.zero_grad()
    for sums in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
        for group in sums:
            sums[group] = None
    optimizer.micro_step_id = -1  # as after an update: the next gradient begins the sum
    if optimizer.cpu_offload:
        optimizer.reset_cpu_buffers()
        optimizer._offload_accumulated_param_ids = set()


def _throw_away_of_zero_3(optimizer: Any) -> None:
    for bucket in optimizer.ipg_buckets.values():
        bucket.clear_params()
    for parameter in optimizer.params_already_reduced:
        optimizer.params_already_reduced[parameter] = False
    optimizer.zero_grad()  # the next gradient begins the sum of each part
    optimizer._offload_boundary_param_ids = set()
    _give_weights_back(optimizer.parameter_offload)


def _give_weights_back(offload: Any) -> None:
    """What a broken pass has gathered of other ranks' weights, or had begun to gather."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus, free_param

    coordinator = offload.get_param_coordinator()
    coordinator.release_backward_leftovers()
    handles = coordinator._PartitionedParameterCoordinator__inflight_param_registry
    for parameter in offload.module.parameters():
        # marked before its gather allocates: one that finds no memory leaves the mark and no handle
        if parameter.ds_status is ZeroParamStatus.INFLIGHT and parameter not in handles:
            parameter.ds_active_sub_modules.clear()
            free_param(parameter)
    coordinator.release_and_reset_all(offload.module)
    if not coordinator.is_invalid_trace():  # it may end where the pass broke off
        coordinator._invalidate_trace()


def collectives_begun() -> dict[str, int]:
    """How many collectives this rank has begun in each of its groups: ranks that have begun as many can go on."""
    groups: Any = dist.distributed_c10d._world.pg_map if dist.is_initialized() else ()
    return {group.group_name: group._get_sequence_number_for_group() for group in groups}
