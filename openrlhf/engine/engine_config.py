"""What DeepSpeed's engine is told: one pure function, so that a configuration can be read in a test or a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ParamDtype = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class EngineSettings:
    """What of the engine the user decides."""

    zero_stage: int = 2
    param_dtype: ParamDtype = "bf16"
    grad_accum_dtype: ParamDtype | None = None  # None: float32 where DeepSpeed can
    max_norm: float = 1.0
    adam_offload: bool = False
    zpg: int = 1  # ZeRO++ secondary partition: ranks a group
    overlap_comm: bool = False
    tensor_parallel_size: int = 1
    deepcompile: bool = False
    use_universal_ckpt: bool = False
    pin_memory: bool = True


def engine_config(settings: EngineSettings, is_training: bool = True) -> dict[str, Any]:
    """DeepSpeed's configuration.

    The engine is told of one micro-batch a step: the trainer says itself which micro-batch is a window's last, so that
    their number may change from step to step.
    """
    config: dict[str, Any] = {
        "steps_per_print": 2**62,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": _zero(settings, is_training),
        "bf16": {"enabled": settings.param_dtype == "bf16", "check_grad_overflow": True, "immediate_grad_update": True},
        "fp16": {"enabled": settings.param_dtype == "fp16", "loss_scale": 0, "initial_scale_power": 16},
        "gradient_clipping": settings.max_norm if is_training else 0.0,
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
        "prescale_gradients": False,
    }
    if accum_dtype := gradient_dtype(settings):
        config["data_types"] = {"grad_accum_dtype": accum_dtype}
        config["communication_data_type"] = accum_dtype
    if settings.tensor_parallel_size > 1:
        config["tensor_parallel"] = {"autotp_size": settings.tensor_parallel_size}
    if settings.use_universal_ckpt:
        config["checkpoint"] = {"load_universal": True}
    if settings.deepcompile:
        config["compile"] = {"deepcompile": True}
    return config


def gradient_dtype(settings: EngineSettings) -> ParamDtype | None:
    """The dtype in which gradients are summed over micro-batches and ranks.

    float32 unless the user says otherwise: a sum in bf16 would depend on how the batch was cut. Without ZeRO DeepSpeed
    cannot sum in another dtype than that of the weights.
    """
    if settings.grad_accum_dtype:
        return settings.grad_accum_dtype
    return None if settings.zero_stage == 0 else "fp32"


def _zero(settings: EngineSettings, is_training: bool) -> dict[str, Any]:
    offload = {"device": "cpu" if settings.adam_offload else "none", "pin_memory": settings.pin_memory}
    zero: dict[str, Any] = {
        "stage": settings.zero_stage if is_training or settings.zero_stage == 3 else 0,
        "overlap_comm": settings.overlap_comm,
        "contiguous_gradients": True,
    }
    if is_training and settings.zero_stage > 0:
        zero["offload_optimizer"] = offload
    if settings.zero_stage == 3:
        zero["zero_hpz_partition_size"] = settings.zpg
    return zero
