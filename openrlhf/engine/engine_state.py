"""Numbers of a run that DeepSpeed's engine keeps: counters, loss scale, learning rates, and this rank's place.

A checkpoint holds these numbers in JSON. Names of counters and of the loss scale's parts are DeepSpeed's own.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from openrlhf.engine.fragments import base_optimizer

_COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")
_LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def counters_of(engine: Any) -> dict[str, int]:
    """Steps, samples and micro-steps that the engine has counted."""
    return {name: getattr(engine, name) for name in _COUNTERS}


def set_counters(engine: Any, counters: dict[str, int]) -> None:
    for name, value in counters.items():
        setattr(engine, name, value)


def loss_scale_of(engine: Any) -> dict[str, float]:
    """The dynamic loss scale (fp16) and its recent history; empty in other dtypes."""
    scaler = _loss_scaler(engine)
    return {name: value for name, value in vars(scaler).items() if name in _LOSS_SCALE} if scaler else {}


def set_loss_scale(engine: Any, loss_scale: dict[str, float]) -> None:
    """Sets the parts that this engine's scaler has too."""
    scaler = _loss_scaler(engine)
    for name, value in loss_scale.items():
        if scaler and hasattr(scaler, name):
            setattr(scaler, name, value)


def never_raise_at_least_loss_scale(engine: Any) -> None:
    """DeepSpeed's scaler for ZeRO raises an Exception there; non-finite steps are counted and told by the trainer."""
    scaler = _loss_scaler(engine)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False


def is_at_least_loss_scale(engine: Any) -> bool:
    """Whether an overflow cannot lower the loss scale any more; also where there is none."""
    scaler = _loss_scaler(engine)
    least = getattr(scaler, "min_scale", getattr(scaler, "min_loss_scale", None))
    return least is None or scaler.cur_scale <= least


def learning_rates_of(engine: Any) -> list[float]:
    """Of each parameter group."""
    return [float(group["lr"]) for group in base_optimizer(engine).param_groups]


def set_learning_rates(engine: Any, learning_rates: list[float]) -> None:
    for group, learning_rate in zip(base_optimizer(engine).param_groups, learning_rates, strict=True):
        group["lr"] = learning_rate


def tensor_parallel_size(engine: Any) -> int:
    return int(engine.mp_world_size)


def tensor_parallel_rank(engine: Any) -> int:
    """The rank whose shards of the parameters this process holds."""
    return engine.checkpoint_mp_rank


def data_rank_and_size(engine: Any) -> tuple[int, int]:
    """This rank's place among those that hold the same shards of the parameters, and their number."""
    return dist.get_rank(engine.seq_data_parallel_group), engine.seq_dp_world_size


def _loss_scaler(engine: Any) -> Any:
    """The object that holds a dynamic loss scale (fp16), None elsewhere."""
    if not engine.fp16_enabled():
        return None
    optimizer = engine.optimizer
    return optimizer.loss_scaler if hasattr(optimizer, "loss_scaler") else optimizer.loss_scale_config
