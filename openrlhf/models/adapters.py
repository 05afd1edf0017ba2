"""Low-rank adapters (LoRA), by PEFT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from openrlhf.errors import UserError


def add_lora(
    model: PreTrainedModel,
    rank: int,
    alpha: int,
    dropout: float,
    target_modules: Sequence[str] | str | None,
) -> nn.Module:
    """Freezes the model and puts trainable adapters beside its linear layers.

    Args:
        target_modules: names of layers, such as ["q_proj", "v_proj"]; None or "all-linear": all but the output layer.

    Raises:
        UserError: PEFT is not installed, or no layer has one of these names.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise UserError("--ds.lora.rank needs the package peft: pip install peft") from None
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=_module_names(target_modules),
        bias="none",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"--ds.lora.target_modules: {error} Linear layers of this model: {', '.join(_linear_names(model))}."
        ) from error


def _module_names(target_modules: Sequence[str] | str | None) -> list[str] | str:
    if target_modules is None or target_modules in ("all-linear", ["all-linear"], ("all-linear",)):
        return "all-linear"
    return [target_modules] if isinstance(target_modules, str) else list(target_modules)


def _linear_names(model: nn.Module) -> list[str]:
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return sorted(names)
