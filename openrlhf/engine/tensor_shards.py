"""Parameters that DeepSpeed's AutoTP has shared out over the ranks of a tensor-parallel group.

It leaves on each the dimension and the sizes of the shares. Its own `GatherReplacedLayerParams` is of no use in a run:
it puts new tensors in the parameters' place, which ZeRO 1 and 2 then no longer update.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SHARES = "ds_autotp_universal_checkpoint_meta"


def is_shared_out(parameter: nn.Parameter) -> bool:
    """Whether this rank holds a part of the parameter only."""
    return _shares_of(parameter).get("partition_sizes") is not None


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The parameter's shape before anything was cut, by AutoTP or by ZeRO-3."""
    if is_shared_out(parameter):
        return tuple(_shares_of(parameter)["logical_shape"])
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


@torch.no_grad()
def joined(parameter: nn.Parameter) -> Tensor:
    """The whole of a parameter that was shared out. A collective call of the ranks of its group."""
    from deepspeed.utils.groups import get_tensor_model_parallel_group

    group = get_tensor_model_parallel_group()
    dim, sizes = _shares_of(parameter)["partition_dim"], _shares_of(parameter)["partition_sizes"]
    shards = []
    for rank, size in enumerate(sizes):
        shape = list(parameter.shape)
        shape[dim] = size
        is_mine = rank == dist.get_rank(group)
        shard = parameter.detach().contiguous() if is_mine else parameter.new_empty(shape)
        dist.broadcast(shard, dist.get_global_rank(group, rank), group=group)
        shards.append(shard)
    return torch.cat(shards, dim=dim)


def _shares_of(parameter: nn.Parameter) -> dict[str, Any]:
    return getattr(parameter, _SHARES, {})
