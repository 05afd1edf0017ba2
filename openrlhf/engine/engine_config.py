"""DeepSpeed's configuration: pure functions, so that it can be read in a test or a log."""

from __future__ import annotations

from typing import Any, Literal

from openrlhf.config.settings import DeepspeedConfig
from openrlhf.errors import UserError

ParamDtype = Literal["bf16", "fp16", "fp32"]


def engine_config(
    ds: DeepspeedConfig, max_norm: float, pin_memory: bool, is_training: bool = True, offload_weights: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration.

    DeepSpeed is told of one micro-batch a step: the trainer itself says which micro-batch is a window's last, so that
    their number may change from step to step.

    Args:
        max_norm: the global gradient norm is clipped to that; 0: not at all.
        pin_memory: offloaded states lie in page-locked memory of the host.
        is_training: False for a model that is only evaluated.
        offload_weights: of such a model, into the host's memory; ranks then share them as in ZeRO-3.
    """
    config: dict[str, Any] = {
        "steps_per_print": 2**62,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": _zero(ds, pin_memory, is_training, offload_weights),
        "bf16": {"enabled": ds.param_dtype == "bf16", "check_grad_overflow": True, "immediate_grad_update": True},
        "fp16": {"enabled": ds.param_dtype == "fp16", "loss_scale": 0, "initial_scale_power": 16},
        "gradient_clipping": max_norm if is_training else 0.0,
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
        "prescale_gradients": False,
    }
    if accum_dtype := gradient_dtype(ds):
        config["data_types"] = {"grad_accum_dtype": accum_dtype}
        config["communication_data_type"] = accum_dtype
    if ds.tensor_parallel_size > 1:
        config["tensor_parallel"] = {"autotp_size": ds.tensor_parallel_size}
    if ds.deepcompile and is_training:
        _check_deepcompile(ds)
        config["compile"] = {"deepcompile": True}
    return config


def gradient_dtype(ds: DeepspeedConfig) -> ParamDtype | None:
    """The dtype in which gradients are summed over micro-batches and ranks; None: DeepSpeed's choice.

    float32 unless the user says otherwise: a sum in bf16 would depend on how the batch was cut. Without ZeRO DeepSpeed
    cannot sum in another dtype than that of the weights.
    """
    if ds.grad_accum_dtype:
        return ds.grad_accum_dtype
    return None if ds.zero_stage == 0 else "fp32"


def config_for_muon(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The configuration under which Muon moves matrices by its own rate; and what is otherwise than asked, in words.

    DeepSpeed clips gradients before Muon sees them in its BF16_Optimizer (ZeRO 1 in bf16) and without ZeRO. Elsewhere
    it clips what Muon has made of them, which is of a norm far above `max_norm`: matrices would hardly move.
    """
    zero, max_norm, is_bf16 = config["zero_optimization"], config["gradient_clipping"], config["bf16"]["enabled"]
    stage, sums = zero["stage"], config.get("data_types", {}).get("grad_accum_dtype")
    if stage == 0 or (stage == 1 and is_bf16 and sums == "fp32"):
        return config, ""
    if stage == 3:
        config = config | {"zero_optimization": zero | {"reduce_scatter": False}}  # DeepSpeed's Muon refuses it
    notes = [f"--max_norm {max_norm:g} is not applied, since DeepSpeed would clip Muon's updates"] if max_norm else []
    if stage == 2 and is_bf16:
        notes.append("gradients and momentum of matrices are summed in bf16")
    better = "--ds.zero_stage 1 with gradients in fp32" if is_bf16 else "--ds.zero_stage 0"
    told = f"note: Muon with ZeRO {stage}: {'; '.join(notes)}. It is otherwise with {better}." if notes else ""
    return config | {"gradient_clipping": 0.0}, told


def _check_deepcompile(ds: DeepspeedConfig) -> None:
    """DeepSpeed has no DeepCompile for an engine without ZeRO, nor for its BF16_Optimizer.

    Raises UserError where it would compile nothing of its own, or fail.
    """
    if ds.zero_stage == 0:
        raise UserError("--ds.deepcompile needs --ds.zero_stage 1, 2 or 3: DeepSpeed compiles what ZeRO does.")
    uses_bf16_optimizer = ds.zero_stage == 1 and ds.param_dtype == "bf16" and not ds.adam_offload
    if uses_bf16_optimizer and gradient_dtype(ds) == "fp32":
        raise UserError("--ds.deepcompile cannot sum gradients of a bf16 model in fp32 with --ds.zero_stage 1: set 2.")


def _zero(ds: DeepspeedConfig, pin_memory: bool, is_training: bool, offload_weights: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": 3 if offload_weights else ds.zero_stage if is_training or ds.zero_stage == 3 else 0,
        "overlap_comm": ds.overlap_comm,
        "contiguous_gradients": True,
    }
    if is_training and ds.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu" if ds.adam_offload else "none", "pin_memory": pin_memory}
    if offload_weights:
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin_memory}
    if ds.zero_stage == 3:
        zero["zero_hpz_partition_size"] = ds.zpg
    return zero
