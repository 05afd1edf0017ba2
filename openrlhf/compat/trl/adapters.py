"""Adapters as PEFT describes them: from a ModelConfig, and into our settings."""

from __future__ import annotations

from typing import Any

from openrlhf.errors import UserError

_OURS = {  # PEFT's name → setting of ds.lora
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "modules_to_save": "modules_to_save",
    "target_parameters": "target_parameters",
    "layers_to_transform": "layers_to_transform",
}
_FREE = {"task_type", "peft_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping"}
_FREE |= {"peft_version", "runtime_config", "target_modules"}


def get_peft_config(model_args: Any) -> Any:
    """PEFT's configuration of the adapters that a ModelConfig asks for; None where it asks for none."""
    if not model_args.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type=model_args.lora_task_type,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        modules_to_save=model_args.lora_modules_to_save,
        target_parameters=model_args.lora_target_parameters,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
    )


def adapter_settings(peft_config: Any, model_type: str) -> dict[str, Any]:
    """PEFT's configuration → our settings. Raises UserError, with every name that we do not have."""
    if peft_config is None:
        return {}
    from peft import LoraConfig
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as MODULES_OF_MODELS

    if not isinstance(peft_config, LoraConfig):
        raise UserError(f"peft_config is a {type(peft_config).__name__}: a LoraConfig can be trained here.")
    defaults = vars(LoraConfig())
    asked = {name: value for name, value in vars(peft_config).items() if value != defaults.get(name)}
    if others := sorted(asked.keys() - _OURS.keys() - _FREE):
        raise UserError(
            *[f"peft_config has {name}={asked[name]!r}, which is not here: leave it out." for name in others]
        )
    modules: Any = peft_config.target_modules
    if isinstance(modules, str) and not modules.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"peft_config has target_modules={modules!r}, a pattern: give a list of the layers' names.")
    if modules is not None and not modules:
        raise UserError("peft_config has target_modules=[], no layer: name one beside the target_parameters.")
    modules = modules or MODULES_OF_MODELS.get(model_type)
    settings = {f"ds.lora.{ours}": _plain(getattr(peft_config, theirs)) for theirs, ours in _OURS.items()}
    if modules is not None:
        settings["ds.lora.target_modules"] = _plain(modules)
    return {name: value for name, value in settings.items() if value is not None}


def _plain(value: Any) -> Any:
    """A list for names and numbers of layers; numbers and switches as they are."""
    if isinstance(value, str):
        return [value]
    return sorted(value) if isinstance(value, set | list | tuple) else value
