"""The parameters of a model as they are whole, whether or not ZeRO-3 or tensor parallelism has cut them up.

ZeRO-3 leaves an empty tensor in a parameter's place, and its facts in attributes that begin with `ds_`. DeepSpeed's
AutoTP leaves a shard, and the dimension and the sizes of all shards in an attribute of their own. DeepSpeed's
`GatherReplacedLayerParams`, which joins shards, is of no use in a run: it puts new tensors in the parameters' place,
which ZeRO 1 and 2 then no longer update.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SHARDS = "ds_autotp_universal_checkpoint_meta"
_BLOCK = re.compile(r"^(.*?\.\d+)\.")


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 holds the parameter, in parts on all ranks."""
    return hasattr(parameter, "ds_id")


def is_shared_out(parameter: Tensor) -> bool:
    """Whether this rank holds one shard of the parameter, by tensor parallelism."""
    return _shards_of(parameter).get("partition_sizes") is not None


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """The parameter's shape before anything was cut."""
    if is_shared_out(parameter):
        return tuple(_shards_of(parameter)["logical_shape"])
    return tuple(parameter.ds_shape if is_partitioned(parameter) else parameter.shape)  # type: ignore[attr-defined]


def whole_numel(parameter: Tensor) -> int:
    """Elements of a parameter that ZeRO-3 may have cut; of one that tensor parallelism shares out, this rank's."""
    return parameter.ds_numel if is_partitioned(parameter) else parameter.numel()  # type: ignore[attr-defined]


def names_of_non_finite(model: nn.Module) -> list[str]:
    """Names of the parameters of which this rank's part holds a nan or an infinity."""
    return [name for name, parameter in model.named_parameters() if holds_non_finite(_part_here(parameter))]


def _part_here(parameter: Any) -> Tensor:
    """This rank's numbers of a parameter. ZeRO-3's parts have one length: nobody writes beyond the last number."""
    if not is_partitioned(parameter):
        return parameter.detach()
    part = parameter.ds_tensor
    start = part.numel() * dist.get_rank(parameter.ds_process_group)
    return part[: max(0, parameter.ds_numel - start)]


def holds_non_finite(values: Tensor) -> bool:
    """Whether a nan or an infinity is among the values; takes no memory of their size where their sum is finite."""
    if not values.is_floating_point() or bool(values.sum().isfinite()):
        return False  # in another dtype the CPU would sum a copy
    return not bool(values.isfinite().all())  # a sum may overflow


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that most elements of the model have, as its configuration should say."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        counts[parameter.dtype] += whole_numel(parameter)
    return counts.most_common(1)[0][0]


@torch.no_grad()
def joined(parameter: nn.Parameter) -> Tensor:
    """The whole of a parameter that was shared out. A collective call of the ranks of its group."""
    from deepspeed.utils.groups import get_tensor_model_parallel_group

    group = get_tensor_model_parallel_group()
    dim, sizes = _shards_of(parameter)["partition_dim"], _shards_of(parameter)["partition_sizes"]
    shards = []
    for rank, size in enumerate(sizes):
        shape = list(parameter.shape)
        shape[dim] = size
        is_mine = rank == dist.get_rank(group)
        shard = parameter.detach().contiguous() if is_mine else parameter.new_empty(shape)
        dist.broadcast(shard, dist.get_global_rank(group, rank), group=group)
        shards.append(shard)
    return torch.cat(shards, dim=dim)


def whole_weights(
    model: nn.Module,
    is_wanted_here: bool,
    only: Callable[[str, nn.Parameter], bool] = lambda name, parameter: True,
) -> Iterator[tuple[str, Tensor | None]]:
    """Name and value of every parameter (tied ones once) and persistent buffer. Collective where weights are cut up.

    Values are copies on the CPU where `is_wanted_here` (rank 0), None elsewhere. One parameter is gathered at a time.
    Every rank must run the iterator to its end.
    """
    for name, parameter in _parameters_once(model):
        if only(name, parameter):
            yield name, _whole_copy(parameter, is_wanted_here)
    persistent = model.state_dict(keep_vars=True).keys()
    for name, buffer in model.named_buffers():
        if name in persistent and only(name, nn.Parameter(buffer, requires_grad=False)):
            yield name, buffer.detach().to("cpu", copy=True) if is_wanted_here else None


def by_block(weights: Iterator[tuple[str, Tensor | None]]) -> Iterator[dict[str, Tensor | None]]:
    """Group consecutive weights of one layer (up to the first number in the name); others come alone."""
    block: dict[str, Tensor | None] = {}
    current: str | None = None
    for name, value in weights:
        match = _BLOCK.match(name)
        key = match.group(1) if match else name
        if block and key != current:
            yield block
            block = {}
        block[name] = value
        current = key
    if block:
        yield block


def _whole_copy(parameter: nn.Parameter, is_wanted_here: bool) -> Tensor | None:
    if is_shared_out(parameter):
        whole = joined(parameter)
        return whole.cpu() if is_wanted_here else None
    with gathered([parameter]):
        return parameter.detach().to("cpu", copy=True) if is_wanted_here else None


def gathered(parameters: Iterable[nn.Parameter], writing: bool = False) -> AbstractContextManager[Any]:
    """Within, parameters that ZeRO-3 has cut up are whole: a collective call then.

    Args: writing: they may be written within, alike on every rank.
    """
    listed = list(parameters)
    if not any(is_partitioned(parameter) for parameter in listed):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(listed, modifier_rank=0 if writing else None)


def _parameters_once(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter under the name that transformers expects when it opens the model."""
    tied_names = set(getattr(model, "all_tied_weights_keys", {}))
    names_of: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of[parameter].append(name)
    for parameter, names in names_of.items():
        yield next((name for name in names if name not in tied_names), names[0]), parameter


def _shards_of(parameter: Tensor) -> dict[str, Any]:
    """AutoTP's note on a parameter: `partition_dim`, `partition_sizes`, `logical_shape`; empty for others."""
    return getattr(parameter, _SHARDS, {})
