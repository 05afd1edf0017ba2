"""Bases that are saved in fewer bits: two formats become plain weights at loading, any other one is refused.

What stays quantized gets no gradient, or is exported as nobody can open it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import safetensors
from huggingface_hub import try_to_load_from_cache
from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.engine.model_internals import forget_conversions
from openrlhf.errors import UserError
from openrlhf.models.notes import tell_once

_FIELD = "quantization_config"
_BITSANDBYTES_4 = "bitsandbytes, 4 bits"
MADE_PLAIN = ("fp8", "mxfp4")  # by transformers, as it reads the weights


def check_quantization(config: PretrainedConfig, path: str, load_in_4bit: bool) -> None:
    """Raises UserError for a quantized base that cannot be trained so. Reads the configuration alone."""
    method = quantization_of(config)
    if method is None or method == _BITSANDBYTES_4 and load_in_4bit:
        return
    if load_in_4bit:
        raise UserError(
            f"--ds.load_in_4bit: {path} is quantized already, by {method} ({_FIELD} in its config.json). Give an "
            f"unquantized copy of the model{', or leave the flag out' if method in MADE_PLAIN else ''}."
        )
    if method not in MADE_PLAIN:
        as_it_is = " Or give both flags with this one." if method == _BITSANDBYTES_4 else ""
        raise UserError(
            f"{path} is quantized by {method} ({_FIELD} in its config.json): its weights cannot be trained, nor "
            "adapters be merged into them. Give an unquantized copy of the model; --ds.load_in_4bit with "
            f"--ds.lora.rank 16 holds it in 4 bits under adapters.{as_it_is}"
        )


def check_trainable(config: PretrainedConfig) -> None:
    """As the check above, of a model that is loaded."""
    check_quantization(config, config.name_or_path or "the model", quantization_of(config) == _BITSANDBYTES_4)


def plain_config(config: PretrainedConfig, path: str, load_in_4bit: bool = False) -> PretrainedConfig:
    """The configuration to load a base by: fp8 and mxfp4 become plain weights; what others hold may not be trained.

    Raises UserError where 4 bits are asked for on top of others.
    """
    method = quantization_of(config)
    if load_in_4bit:
        check_quantization(config, path, load_in_4bit)
        return config
    if method not in MADE_PLAIN:
        return config
    tell_once(f"{path} is quantized by {method}: its weights become plain ones as they are read, and are exported so.")
    config = copy.deepcopy(config)
    config.quantization_config = {**_fields(config), "dequantize": True}
    return config


def finish_plain_loading(model: PreTrainedModel, config: PretrainedConfig, path: str) -> None:
    """Of a model that was loaded by a `plain_config`: it is saved plain, where transformers would quantize it again.

    Raises UserError where transformers has read its weights wrongly.
    """
    if quantization_of(config) in MADE_PLAIN:
        forget_conversions(model)
    if quantization_of(config) == "fp8":
        _check_blocks(_folder_of(path), _fields(config).get("weight_block_size"))


def quantization_of(config: PretrainedConfig) -> str | None:
    """The method, by its name in config.json; None for plain weights."""
    fields = _fields(config)
    if not fields:
        return None
    if fields.get("load_in_4bit"):
        return _BITSANDBYTES_4
    method = fields.get("quant_method", "an unknown method")
    return str(getattr(method, "value", method))


def _fields(config: PretrainedConfig) -> dict[str, Any]:
    found = getattr(config, _FIELD, None)
    return found if isinstance(found, dict) else found.to_dict() if found else {}


def _folder_of(name_or_path: str) -> Path:
    """Where the files lie that were read; of a name on the hub, in the cache."""
    cached = try_to_load_from_cache(name_or_path, "config.json") if not Path(name_or_path).is_dir() else None
    return Path(cached).parent if isinstance(cached, str) else Path(name_or_path)


def _check_blocks(folder: Path, block_size: Any) -> None:
    """Raises UserError for a matrix whose last block is a part: transformers cuts all its rows into equal blocks."""
    if not block_size:  # one scale a matrix
        return
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            for name in filter(lambda name: f"{name}_scale_inv" in file.keys(), file.keys()):  # noqa: SIM118
                shape = file.get_slice(name).get_shape()[-2:]
                if any(size > block and size % block for size, block in zip(shape, block_size, strict=True)):
                    raise UserError(
                        f"{path}: {name} has the shape {tuple(shape)}, which blocks of {tuple(block_size)} do not "
                        "divide: transformers would read it wrongly. Give an unquantized copy of the model."
                    )
