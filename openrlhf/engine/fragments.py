"""Where DeepSpeed keeps the optimizer's side of each parameter on this rank, for every ZeRO stage.

The optimizer's float32 master weights, and its state beside them, lie in tensors that hold many parameters, one or a
part of one. A `Fragment` names one stretch: these elements of that parameter are here. Saving copies from fragments,
loading copies into them, and neither knows a ZeRO stage.

    parameters   a (12 elements)                      b (6 elements)
                 [ 0  1  2  3  4  5  6  7  8  9 10 11 ][ 0  1  2  3  4  5 ]
    ZeRO 1, 2    |<---- host of rank 0 ---->|<----- host of rank 1 ------>|
                 rank 0: a, start 0, numel 9, host_start 0
                 rank 1: a, start 9, numel 3, host_start 0; b, start 0, numel 6, host_start 3
    ZeRO 3       each parameter is cut by itself
                 rank 0: a, start 0, numel 6, host_start 0; b, start 0, numel 3, host_start 6
                 rank 1: a, start 6, numel 6, host_start 0; b, start 3, numel 3, host_start 6
    ZeRO 0       each rank has all of both, and `is_replicated` says so

The kind of DeepSpeed's optimizer is told by the attributes that only it has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

MUON_MOMENTUM = "momentum_buffer"
STEP = "step"  # how many updates there were, in an optimizer's state


@dataclass(frozen=True)
class Fragment:
    """Elements `[start, start + numel)` of the flattened parameter `name`.

    `host` is the tensor that the base optimizer optimizes (its key in `optimizer.state`); the elements lie in
    it from `host_start` on. `is_replicated`: every rank has the same.

    A fragment with `own_kind` is of that one kind of optimizer state, which lies not beside the master weights but in
    a tensor of its own, of `own_numel` elements.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    host: Tensor
    host_start: int
    is_replicated: bool
    own_kind: str | None = None
    own_numel: int = 0

    def view_of(self, tensor: Tensor) -> Tensor:
        """These elements in a tensor shaped like `host`, or in the one of `own_kind`."""
        return tensor.detach().view(-1).narrow(0, self.host_start, self.numel)


def local_fragments(engine: Any) -> list[Fragment]:
    """The fragments of this rank in the order of the model's parameters; those not trained have none."""
    optimizer = engine.optimizer
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if hasattr(optimizer, "fp16_partitioned_groups_flat"):
        found = _of_stage_3(optimizer, names)
    elif hasattr(optimizer, "_link_all_hp_params"):
        found = chain(_of_flat_partitions(optimizer, names), _of_muon_partitions(optimizer, names))
    elif hasattr(optimizer, "fp32_groups_flat"):
        found = _of_flat_copies(optimizer, names)
    elif hasattr(optimizer, "fp32_groups"):
        found = _of_single_copies(optimizer, names)
    else:
        found = _of_plain_optimizer(optimizer, names)
    order = {name: index for index, name in enumerate(names.values())}
    return sorted(found, key=lambda fragment: order[fragment.name])


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed wraps, whose `state` is keyed by `Fragment.host`."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


class StepCounts:
    """How many updates a host tensor has had, though every optimizer keeps the count in another form.

    torch's optimizers count in a tensor for each host. DeepSpeed's count in an integer, and its fused Adam
    counts for the last tensor of a group only: there the highest count is everyone's.
    """

    def __init__(self, engine: Any):
        optimizer = base_optimizer(engine)
        self.state: dict[Tensor, dict[str, Any]] = optimizer.state
        self._counts_in_tensors = type(optimizer).__module__.startswith("torch.optim")
        self._counts_on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        counts = [float(state[STEP]) for state in self.state.values() if STEP in state]
        self._highest = max(counts, default=None)

    def of(self, host: Tensor) -> float | None:
        count = self.state.get(host, {}).get(STEP)
        if count is None:
            return None
        return float(count) if self._counts_in_tensors else self._highest

    def set(self, fragments: list[Fragment], num_steps: dict[str, float]) -> None:
        """Give each host the highest count of the parameters that lie in it."""
        counts: dict[Tensor, float] = {}
        for fragment in fragments:
            if fragment.name in num_steps:
                count = num_steps[fragment.name]
                counts[fragment.host] = max(count, counts.get(fragment.host, count))
        for host, count in counts.items():
            device = host.device if self._counts_on_device else "cpu"
            as_tensor = self._counts_in_tensors
            self.state[host][STEP] = torch.tensor(count, device=device) if as_tensor else int(count)


@torch.no_grad()
def spread_master_weights(engine: Any) -> None:
    """Bring the model's parameters up to the master weights, after these were written. Collective."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp16_partitioned_groups_flat"):
        _spread_stage_3(optimizer)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups_flat"):
        for group, copies in zip(optimizer.fp16_groups_flat, optimizer.fp32_groups_flat, strict=True):
            group.data.copy_(copies.data)
    elif hasattr(optimizer, "fp32_groups"):
        for parameters, copies in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.data.copy_(copy.data)


def _of_stage_3(optimizer: Any, names: dict[nn.Parameter, str]) -> Iterator[Fragment]:
    """Every parameter is cut into as many equal parts as there are ranks, the last one padded."""
    for group in optimizer.fp16_groups:
        for parameter in group:
            host_index, host_start, part_numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = part_numel * optimizer._get_param_partition_rank(parameter)
            numel = min(part_numel, parameter.ds_numel - start)
            if numel > 0:
                host = optimizer.fp32_partitioned_groups_flat[host_index]
                shape = tuple(parameter.ds_shape)
                yield Fragment(names[parameter], shape, start, numel, host, host_start, is_replicated=False)


def _of_flat_partitions(optimizer: Any, names: dict[nn.Parameter, str]) -> Iterator[Fragment]:
    """ZeRO 1 and 2: all parameters of a group in one line, cut into one stretch a rank."""
    is_bf16_optimizer = hasattr(optimizer, "fp32_groups_flat_partition")
    hosts = optimizer.fp32_groups_flat_partition if is_bf16_optimizer else optimizer.single_partition_of_fp32_groups
    for parameter, name in names.items():
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            host = hosts[mapping.param_group_index]
            yield Fragment(name, tuple(parameter.shape), here.start, here.numel, host, there.start, False)


def _of_muon_partitions(optimizer: Any, names: dict[nn.Parameter, str]) -> Iterator[Fragment]:
    """Muon in ZeRO 1 and 2 keeps the momentum of whole matrices, on every rank that owns a part of one.

    BF16_Optimizer (ZeRO 1 in bf16) keeps it as it keeps the master weights.
    """
    is_muon = "muon" in type(optimizer.optimizer).__name__.lower()
    if not is_muon or hasattr(optimizer, "fp32_groups_flat_partition") or optimizer.cpu_offload:
        return
    for group, host in zip(optimizer.params_in_partition, optimizer.single_partition_of_fp32_groups, strict=True):
        if not group or not getattr(group[0], "use_muon", False):
            continue
        own_numel, start = sum(parameter.numel() for parameter in group), 0
        for parameter in group:
            shape, numel = tuple(parameter.shape), parameter.numel()
            yield Fragment(names[parameter], shape, 0, numel, host, start, False, MUON_MOMENTUM, own_numel)
            start += numel


def _of_flat_copies(optimizer: Any, names: dict[nn.Parameter, str]) -> Iterator[Fragment]:
    """Stage 0 in 16 bits with a fused optimizer: all parameters of a group in one line, on every rank."""
    for group, host in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
        host_start = 0
        for parameter in group:
            numel = parameter.numel()
            yield Fragment(names[parameter], tuple(parameter.shape), 0, numel, host, host_start, True)
            host_start += numel


def _of_single_copies(optimizer: Any, names: dict[nn.Parameter, str]) -> Iterator[Fragment]:
    """Stage 0 in 16 bits with another optimizer: a float32 copy of each parameter."""
    for parameters, hosts in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for parameter, host in zip(parameters, hosts, strict=True):
            yield Fragment(names[parameter], tuple(parameter.shape), 0, parameter.numel(), host, 0, True)


def _of_plain_optimizer(optimizer: Any, names: dict[nn.Parameter, str]) -> Iterator[Fragment]:
    """Stage 0 in float32: the parameters themselves."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                yield Fragment(names[parameter], tuple(parameter.shape), 0, parameter.numel(), parameter, 0, True)


def _spread_stage_3(optimizer: Any) -> None:
    optimizer.checkpoint_event_prologue()
    for host_index in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(host_index)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
    optimizer.checkpoint_event_epilogue()
