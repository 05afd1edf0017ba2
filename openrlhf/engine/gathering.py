"""The weights of a model one by one, whole, whether or not ZeRO-3 or tensor parallelism has cut them up."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from openrlhf.engine.tensor_shards import is_shared_out, joined

_BLOCK = re.compile(r"^(.*?\.\d+)\.")


def whole_weights(
    model: nn.Module,
    is_wanted_here: bool,
    only: Callable[[str, nn.Parameter], bool] = lambda name, parameter: True,
) -> Iterator[tuple[str, Tensor | None]]:
    """Name and value of every parameter (tied ones once) and persistent buffer. Collective where
    weights are cut up.

    Values are copies on the CPU where `is_wanted_here` (rank 0), None elsewhere. One parameter is gathered at
    a time. Every rank must run the iterator to its end.
    """
    for name, parameter in _parameters_once(model):
        if not only(name, parameter):
            continue
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
    with _whole(parameter):
        return parameter.detach().to("cpu", copy=True) if is_wanted_here else None


def _whole(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Inside, a parameter that ZeRO-3 has cut up is whole."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def _parameters_once(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter under the name that transformers expects when it opens the model."""
    tied_names = set(getattr(model, "all_tied_weights_keys", {}))
    names_of: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of[parameter].append(name)
    for parameter, names in names_of.items():
        yield next((name for name in names if name not in tied_names), names[0]), parameter


def model_dtype(model: nn.Module) -> Any:
    """The dtype that most elements of the model have, as its configuration should say."""
    counts: dict[Any, int] = defaultdict(int)
    for parameter in model.parameters():
        counts[parameter.dtype] += getattr(parameter, "ds_numel", parameter.numel())
    return max(counts, key=lambda dtype: counts[dtype])
