"""Changes to the layers of a loaded model: adapters (LoRA, by PEFT), Liger's fused kernels, torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from openrlhf.engine.model_internals import layers_of, put_liger_kernels_into
from openrlhf.errors import UserError


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685)."""

    rank: int  # 0: none
    alpha: int
    dropout: float
    target_modules: Sequence[str] | str | None  # names of layers; None or "all-linear": all but the output layer


def add_lora(model: PreTrainedModel, lora: LoraSettings) -> nn.Module:
    """Freezes the model and puts trainable adapters beside its linear layers.

    Raises:
        UserError: PEFT is not installed, or no layer has one of these names.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise UserError("--ds.lora.rank needs the package peft: pip install peft") from None
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_module_names(lora.target_modules),
        bias="none",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"--ds.lora.target_modules: {error} Linear layers of this model: {', '.join(_linear_names(model))}."
        ) from error


def apply_liger_kernels(model: PreTrainedModel) -> None:
    """Puts Liger's fused norms, rotary embeddings and MLPs into the model, in place; its head and loss stay ours.

    Raises UserError where liger-kernel is not installed.
    """
    try:
        put_liger_kernels_into(model)
    except ImportError:
        raise UserError("--ds.use_liger_kernel needs a package: pip install liger-kernel") from None


def compile_layers(model: PreTrainedModel) -> None:
    """Compiles the layers of a model of transformers in place, when they are first called; lengths may differ.

    Layer by layer and not the model as a whole: equal layers share one compiled form, and attention, which is a kernel
    of its own, stays as it is.

    Raises:
        UserError: the model does not say what its layers are.
    """
    layers = layers_of(model)
    if not layers:
        raise UserError(f"{type(model).__name__} does not name its layers: leave --model.compile_layers out.")
    for layer in layers:
        layer.compile(dynamic=True)


def _module_names(target_modules: Sequence[str] | str | None) -> list[str] | str:
    if target_modules is None or target_modules in ("all-linear", ["all-linear"], ("all-linear",)):
        return "all-linear"
    return [target_modules] if isinstance(target_modules, str) else list(target_modules)


def _linear_names(model: nn.Module) -> list[str]:
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return sorted(names)
