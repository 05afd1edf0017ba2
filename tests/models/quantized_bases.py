"""Tiny bases as hubs hold them in fewer bits, written by hand: fp8 in blocks, and mxfp4."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.tiny_models import tiny_model

BLOCK = 32  # weights of one scale, or a side of their square
_LARGEST_FP8 = 448.0
_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def save_fp8(folder: Path, kind: str) -> dict[str, Tensor]:
    """Returns: the weights that the files stand for, by the names of the plain model."""
    plain, stored, meant = _saved_plain(folder, kind), {}, {}
    for name, weight in plain.items():
        stored[name] = meant[name] = weight
        if name.endswith("_proj.weight"):
            rows, columns = (size // BLOCK for size in weight.shape)
            blocks = weight.reshape(rows, BLOCK, columns, BLOCK)
            scales = blocks.abs().amax((1, 3), keepdim=True) / _LARGEST_FP8
            quantized = (blocks / scales).to(torch.float8_e4m3fn)
            stored[name] = quantized.reshape(weight.shape)
            stored[f"{name}_scale_inv"] = scales[:, 0, :, 0].contiguous()
            meant[name] = (quantized.float() * scales).reshape(weight.shape)
    _write(folder, stored, dict(quant_method="fp8", weight_block_size=[BLOCK, BLOCK]))
    return meant


def save_mxfp4(folder: Path) -> dict[str, Tensor]:
    """gpt-oss; returns as `save_fp8`."""
    plain, stored, meant = _saved_plain(folder, "gpt_oss"), {}, {}
    draw = torch.Generator().manual_seed(0)
    for name, weight in plain.items():
        stored[name] = meant[name] = weight
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            num_experts, columns, rows = weight.shape
            shape = num_experts, rows, columns // BLOCK
            blocks = torch.randint(256, (*shape, BLOCK // 2), generator=draw, dtype=torch.uint8)
            scales = torch.randint(120, 124, shape, generator=draw, dtype=torch.uint8)
            del stored[name]
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            numbers = torch.stack([_FP4[(blocks & 15).long()], _FP4[(blocks >> 4).long()]], dim=-1).flatten(-2)
            meant[name] = (numbers * torch.exp2(scales.float() - 127)[..., None]).flatten(-2).transpose(1, 2)
    _write(folder, stored, dict(quant_method="mxfp4", modules_to_not_convert=["lm_head"]))
    return meant


def write_quantization(folder: Path, quantization: dict) -> None:
    """Into the config.json of a folder."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def _saved_plain(folder: Path, kind: str) -> dict[str, Tensor]:
    tiny_model(kind).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def _write(folder: Path, weights: dict[str, Tensor], quantization: dict) -> None:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_quantization(folder, quantization)
