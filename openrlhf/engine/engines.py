"""DeepSpeed's engine under a model: what the strategy asks of a model, and how the engine is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from openrlhf.engine.patches.bf16_gradients import spare_copies
from openrlhf.engine.patches.muon_import import import_muon_uncompiled


class Trainable(Protocol):
    """What the strategy asks of a model; `Actor` is one."""

    @property
    def trainable_module(self) -> nn.Module:
        """What the engine wraps."""

    @property
    def engine(self) -> Any:
        """What `attach_engine` was given; None before."""

    @property
    def model(self) -> Any:
        """The Hugging Face model."""

    def attach_engine(self, engine: Any) -> None:
        """From now on the model computes through `engine`."""


def attach_training_engine(
    model: Trainable, optimizer: Any, config: dict[str, Any], device: torch.device, say: Callable[[str], None]
) -> Any:
    """Makes the engine that trains `model` and attaches it; returns the engine's optimizer."""
    import deepspeed

    import_muon_uncompiled()
    module = model.trainable_module
    if config["zero_optimization"]["stage"] == 3:
        _mark_leaf_modules(module, say)
    config = config_of_shares(model, config)
    with _without_updates(optimizer):
        engine, engine_optimizer, _, _ = deepspeed.initialize(
            model=_on_device(module, device), optimizer=optimizer, config=config, dist_init_required=False
        )
    _leave_out_data_check(engine)
    spare_copies(engine)
    model.attach_engine(engine)
    return engine_optimizer


def attach_evaluation_engine(model: Trainable, config: dict[str, Any], device: torch.device) -> None:
    """Makes an engine that only computes, and attaches it."""
    import deepspeed

    module = _on_device(model.trainable_module, device)
    config = config_of_shares(model, config)
    engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    _leave_out_data_check(engine)
    model.attach_engine(engine)


def engine_of(model: Trainable) -> Any:
    """The engine of a model that has been prepared."""
    assert model.engine is not None, "strategy.prepare comes before training"
    return model.engine


def config_of_shares(model: Trainable, config: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration with the layers that tensor parallelism shares out, where it is asked for."""
    if "tensor_parallel" not in config:
        return config
    from openrlhf.models.tensor_parallel import check_tensor_parallel, partition_config

    check_tensor_parallel(model.model.config, config["tensor_parallel"]["autotp_size"])
    shares = partition_config(model.trainable_module, model.model)
    return config | {"tensor_parallel": config["tensor_parallel"] | {"partition_config": shares}}


@contextmanager
def _without_updates(optimizer: Any) -> Iterator[None]:
    """Without ZeRO, in 16 bits, DeepSpeed lets the optimizer take a step while the engine is made, to get its state.

    That step would count in Adam's bias correction, and would decay the weights.
    """
    own_step = optimizer.step
    optimizer.step = lambda *args, **kwargs: None
    try:
        yield
    finally:
        optimizer.step = own_step


def _leave_out_data_check(engine: Any) -> None:
    """DeepSpeed would compare the first inputs of a tensor group's ranks, and cannot pickle the groups among them."""
    check = getattr(engine, "first_dataloader_check", None)
    if check is not None:
        check.remove()


def _on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """ZeRO-3 may hold the weights in parts already (they were loaded so), each where it belongs."""
    is_partitioned = any(hasattr(parameter, "ds_id") for parameter in module.parameters())
    return module if is_partitioned else module.to(device)


def _mark_leaf_modules(module: nn.Module, say: Callable[[str], None]) -> None:
    """Under ZeRO-3 an expert that gets no token would not be gathered, and ranks would wait for each other for ever."""
    from deepspeed.utils import set_z3_leaf_modules

    from openrlhf.models.moe import expert_leaf_modules

    if leaves := expert_leaf_modules(module):
        set_z3_leaf_modules(module, leaves)
        say(f"ZeRO-3 gathers these modules whole: {', '.join(sorted(leaf.__name__ for leaf in leaves))}.")
