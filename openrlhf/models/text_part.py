"""Composites, which also see or hear, whose causal language model in transformers is their text part alone: Llama 4."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.models.notes import tell_once

_NAME = "language_model"  # of the text part among the composite's weights


def trained_part(config: PretrainedConfig, model_class: type[PreTrainedModel] | None) -> PretrainedConfig:
    """The configuration of what is trained, that of the text where the class of the composite reads text alone.

    transformers takes the same one when it loads the weights.
    """
    text_config = config.get_text_config()
    if model_class is None or text_config is config or model_class.config_class is not type(text_config):
        return config
    if quantization := getattr(config, "quantization_config", None):
        text_config.quantization_config = quantization
    return text_config


def without_other_parts(info: dict[str, Any], model: PreTrainedModel, config: PretrainedConfig, path: str) -> Any:
    """What transformers says of the loading, without the weights of parts that are not trained; tells of them.

    Args: config: of the folder.
    """
    if trained_part(config, type(model)) is config:
        return info
    tell_once(
        f"{path} is a {config.model_type} model, of which {type(model).__name__} is the text part: it alone is trained "
        "and exported."
    )
    own = {_head_of(name) for name in model.state_dict()}
    return info | {"unexpected_keys": {name for name in info["unexpected_keys"] if _head_of(name) in own}}


def _head_of(name: str) -> str:
    """The first two words of a weight's name in the text part: "model.layers", "lm_head.weight"."""
    return ".".join([word for word in name.split(".") if word != _NAME][:2])
