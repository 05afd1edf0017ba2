"""DeepSpeed's engine under a model: made for training or evaluation, and driven through one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from openrlhf.engine.abandoned_step import throw_away_gradients
from openrlhf.engine.engine_config import config_for_muon
from openrlhf.engine.engine_state import never_raise_at_least_loss_scale
from openrlhf.engine.model_internals import kept_in_float32
from openrlhf.engine.optimizers import is_muon
from openrlhf.engine.parameters import is_partitioned
from openrlhf.engine.patches.gradient_copies import add_without_copies
from openrlhf.engine.patches.held_updates import updates_only_if
from openrlhf.engine.patches.muon_import import import_muon
from openrlhf.engine.patches.tensor_data_check import leave_out_data_check
from openrlhf.engine.step_guard import StepGuard, StepOutcome

_PARTITION_TYPES = {"colwise": "column", "rowwise": "row", "replicated_with_grad_allreduce": "skip"}


class Trainable(Protocol):
    """A model that an engine can be put under; `Actor` is one."""

    trained: TrainedModel | None  # set by `prepare_training`

    @property
    def trainable_module(self) -> nn.Module:
        """The module that the engine wraps."""

    @property
    def engine(self) -> Any:
        """The engine that `attach_engine` was given; None before."""

    def attach_engine(self, engine: Any) -> None:
        """From now on the model computes through `engine`."""

    def zero3_leaf_modules(self) -> list[type[nn.Module]]:
        """Classes of modules that ZeRO-3 must gather whole, as their parts do not run on all ranks alike."""

    def tensor_parallel_plan(self, size: int) -> dict[str, str]:
        """How each layer that `size` ranks share is cut: by a pattern of its name in `trainable_module`.

        A style is one of transformers' `colwise`, `rowwise` and `replicated_with_grad_allreduce`. Raises UserError
        where the model cannot be shared.
        """


@dataclass
class TrainedModel:
    """A model in training: its engine, schedule and guard.

    Args:
        engine: DeepSpeed's.
        num_ranks_averaged: ranks over which DeepSpeed averages gradients: all that hold the same share of the weights.
        tensor_group: the ranks that share the weights of a layer (tensor parallelism); None: there is no such sharing.
    """

    engine: Any
    scheduler: LRScheduler
    guard: StepGuard
    num_ranks_averaged: int = 1
    tensor_group: ProcessGroup | None = None
    restored_progress: Any = None  # how far the checkpoint was that has been loaded (TrainingProgress); None: none was
    went_back_to_step: int | None = None  # at the end, for the best weights; None: the weights are the last step's
    run_id: str | None = None  # its checkpoints carry it: the strategy's, or of the run whose checkpoint was loaded
    restored_layout: dict[str, Any] | None = None  # that it had kept (`LayoutTuner.kept`); None: none
    last_outcome: StepOutcome | None = None  # of the step before; None: there was none
    num_backwards: int = 0  # of a loop of the user's own, which does not say which micro-batch is a step's last

    @property
    def optimizer(self) -> Any:
        """The engine's."""
        return self.engine.optimizer

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Around one forward and backward pass; gradients are reduced over ranks in a window's last one."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward_share(self, loss_share: Tensor) -> None:
        """Backward of this micro-batch's share of the step's loss: its summed loss over the *window's* divisor.

        DeepSpeed averages gradients over ranks; the shares of all ranks must add up instead. This is the one place that
        undoes the averaging.
        """
        self.engine.backward(loss_share * self.num_ranks_averaged)

    def throw_away_gradients(self) -> None:
        """Of the passes since the last update: the step is given up, and begins anew."""
        throw_away_gradients(self.engine)

    def step(self) -> StepOutcome:
        """The optimizer's update, unless it would do harm, and the schedule's next learning rate in any case."""
        self.last_outcome = self.guard.step(self.engine, self.tensor_group)
        self.scheduler.step()
        return self.last_outcome


def prepare_training(
    model: Trainable,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    config: dict[str, Any],
    device: torch.device,
    guard: StepGuard,
    num_ranks_averaged: int = 1,
    tensor_group: ProcessGroup | None = None,
    say: Callable[[str], None] = print,
) -> TrainedModel:
    """Makes the engine that trains `model`, and attaches it.

    Args:
        config: of `engine_config`, with DeepSpeed's `train_batch_size`.
        say: tells the user what was found.

    Raises UserError where the model cannot be shared out as `config` asks.
    """
    if config["zero_optimization"]["stage"] == 3:
        _mark_leaf_modules(model, say)
    _tell_of_rounded_weights(model, config, say)
    if is_muon(optimizer):
        config, note = config_for_muon(config)
        if note:
            say(note)
    with updates_only_if(optimizer, lambda: False):
        engine = _attached_engine(model, config, device, optimizer)
    add_without_copies(engine)
    never_raise_at_least_loss_scale(engine)
    if "compile" in config:
        engine.compile()  # the configuration alone only allows DeepCompile
    model.trained = TrainedModel(engine, scheduler, guard, num_ranks_averaged, tensor_group)
    return model.trained


def prepare_evaluation(model: Trainable, config: dict[str, Any], device: torch.device) -> None:
    """Makes an engine that only computes, and attaches it."""
    _attached_engine(model, config, device)


def _attached_engine(
    model: Trainable, config: dict[str, Any], device: torch.device, optimizer: Optimizer | None = None
) -> Any:
    import deepspeed

    import_muon()
    module = model.trainable_module
    # ZeRO-3 may hold the weights in parts already (they were loaded so), each where it belongs.
    is_loaded_in_parts = any(is_partitioned(parameter) for parameter in module.parameters())
    engine, *_ = deepspeed.initialize(
        model=module if is_loaded_in_parts else module.to(device),
        optimizer=optimizer,
        config=_with_partition_config(model, config),
        dist_init_required=False,
    )
    leave_out_data_check(engine)
    model.attach_engine(engine)
    return engine


def _with_partition_config(model: Trainable, config: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration with the layers that tensor parallelism shares out, where it is asked for."""
    if "tensor_parallel" not in config:
        return config
    plan = model.tensor_parallel_plan(config["tensor_parallel"]["autotp_size"])
    specs = [
        dict(
            patterns=[layer + r"\.weight$"],
            partition_type=_PARTITION_TYPES[style],
            grad_allreduce=style == "replicated_with_grad_allreduce",
        )
        for layer, style in plan.items()
    ]
    shares = dict(use_default_specs=False, layer_specs=specs)
    return config | {"tensor_parallel": config["tensor_parallel"] | {"partition_config": shares}}


def _mark_leaf_modules(model: Trainable, say: Callable[[str], None]) -> None:
    """Under ZeRO-3 an expert that gets no token would not be gathered, and ranks would wait for each other for ever."""
    from deepspeed.utils import set_z3_leaf_modules

    if leaves := model.zero3_leaf_modules():
        set_z3_leaf_modules(model.trainable_module, leaves)
        say(f"ZeRO-3 gathers these modules whole: {', '.join(sorted(leaf.__name__ for leaf in leaves))}.")


def _tell_of_rounded_weights(model: Trainable, config: dict[str, Any], say: Callable[[str], None]) -> None:
    """DeepSpeed computes all parameters in one dtype; its optimizer's own copy is in float32."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in dtypes.items():
        if config[name]["enabled"] and (kept := kept_in_float32(model.trainable_module, dtype)):
            last_names = sorted({".".join(one.split(".")[-2:]) for one in kept})
            say(
                f"transformers would hold {len(kept)} weights in float32 ({', '.join(last_names)}): here they are in "
                f"{name}, like all others, and are exported so. --ds.param_dtype fp32 rounds none."
            )
