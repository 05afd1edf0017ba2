"""What a script hands to `from_pretrained`: quantization and the place of the weights."""

from __future__ import annotations

from typing import Any

import torch

from openrlhf.engine.devices import device_of_rank


def get_quantization_config(model_args: Any) -> Any:
    """bitsandbytes' configuration that a ModelConfig asks for; None where it asks for none."""
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    from transformers import BitsAndBytesConfig

    if not model_args.load_in_4bit:
        return BitsAndBytesConfig(load_in_8bit=True)  # SFTTrainer refuses it in words
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
    )


def get_kbit_device_map() -> dict[str, int] | None:
    """Quantized weights go to this rank's GPU as they are loaded; None without a GPU."""
    device = device_of_rank()
    return {"": device.index} if device.type == "cuda" else None
