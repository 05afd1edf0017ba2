"""What a script hands to `from_pretrained`: quantization and the place of the weights."""

from __future__ import annotations

import os
from typing import Any

import torch


def get_quantization_config(model_args: Any) -> Any:
    """bitsandbytes' configuration that a ModelConfig asks for; None where it asks for none."""
    if not model_args.load_in_4bit:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
    )


def get_kbit_device_map() -> dict[str, int] | None:
    """Quantized weights go to this rank's GPU as they are loaded; None without a GPU."""
    return {"": int(os.environ.get("LOCAL_RANK", "0"))} if torch.cuda.is_available() else None
