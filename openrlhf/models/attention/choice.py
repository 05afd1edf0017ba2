"""The choice of attention: names a user may give, what `auto` takes, what must be installed, what may be packed.

A model may be trained on packs if its every layer lets a token see its own sample only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from openrlhf.engine.model_internals import carries_state, takes_any_attention, takes_borders
from openrlhf.errors import UserError
from openrlhf.models.attention import per_sample, ring, ring_flash, torch_varlen

FLAG = "--ds.attn_implementation"
_PLAIN = ("eager", "sdpa")  # transformers' own: no borders of samples, but right in a pack, with a T x T mask
_FLASH_PACKAGES = {  # name: (module, install line)
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": (
        "flash_attn_interface",
        "pip install 'git+https://github.com/Dao-AILab/flash-attention.git#subdirectory=hopper'",
    ),
}
_FASTEST_FLASH_FIRST = ("flash_attention_3", "flash_attention_2")
_PACKABLE_LAYER_TYPES = {"full_attention", "sliding_attention"}
_REMEDY = "Remove --ds.packing_samples (and --ds.ring_attn_size) to train it on padded batches."
_OURS: dict[str, Callable[..., Any]] = {
    per_sample.NAME: per_sample.per_sample_attention,
    torch_varlen.NAME: torch_varlen.torch_varlen_attention,
    ring.NAME: ring.ring_attention,
    ring_flash.NAME: ring_flash.ring_flash_attention,
}


def register_attentions() -> None:
    """Makes our back ends known to transformers under their names."""
    for name, attention in _OURS.items():
        AttentionInterface.register(name, torch.compiler.disable(attention))  # loops over samples: nothing to fuse
        AttentionMaskInterface.register(name, per_sample.causal_mask_unwritten)


def choose_attention(name: str, device_type: str, packed: bool, ring_size: int) -> str | None:
    """The name, as transformers knows it, of the attention to load a model with; None: transformers' own choice.

    Args:
        name: what the user asked for: "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "per_sample",
            "torch_varlen", "ring", "ring_flash_attn", or a kernel of the hub such as "kernels-community/flash-attn2".
        device_type: "cpu" or "cuda".
        ring_size: ranks that share one pack; 1: none do.

    Raises:
        UserError: the name is unknown, needs something that is not installed, or does not fit packing or the ring.
    """
    if ring_size > 1:
        return _choose_for_ring(name, device_type, packed)
    if name == "auto":
        return _best_packed(device_type) if packed else None
    if name in _FLASH_PACKAGES:
        _require_flash(name, device_type)
    elif name == ring_flash.NAME:
        raise UserError(f"{FLAG} {name} shares packs over ranks: add --ds.ring_attn_size and --ds.packing_samples.")
    elif name == torch_varlen.NAME and device_type != "cuda":
        raise UserError(f"{FLAG} torch_varlen runs on CUDA only, not on {device_type}. Use {per_sample.NAME} or auto.")
    elif "/" in name:
        _require_kernels(name)
    elif name not in _PLAIN and name not in _OURS:
        known = ", ".join(["auto", *_PLAIN, *_FLASH_PACKAGES, *_OURS])
        raise UserError(f"{FLAG} {name} is unknown. Known: {known}, or a kernel of the hub (owner/name).")
    return name


def check_packable(model_class: type[PreTrainedModel], config: PretrainedConfig) -> None:
    """Raises UserError where samples in a pack could see one another.

    A model passes if all its layers attend fully or in a sliding window, if it hands its attention to transformers'
    interface, and if transformers says that kernels which take the borders of samples work in it.
    """
    text_config = config.get_text_config()
    reason = _reason_against(model_class, text_config)
    if reason:
        name = model_class.__name__
        raise UserError(f"{name} cannot be trained on packed samples: {reason}. {_REMEDY}")


def check_causal(model: PreTrainedModel) -> None:
    """Raises UserError for a model with layers that look ahead, as encoders have; needs the model itself."""
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        name = type(model).__name__
        raise UserError(f"{name} cannot be trained on packed samples: its attention is not causal. {_REMEDY}")


def _choose_for_ring(name: str, device_type: str, packed: bool) -> str:
    if name not in ("auto", ring.NAME, ring_flash.NAME):
        raise UserError(
            f"{FLAG} {name} cannot share a sequence over ranks. With --ds.ring_attn_size use {ring.NAME}, "
            f"{ring_flash.NAME} or auto."
        )
    if not packed:
        raise UserError("--ds.ring_attn_size above 1 shares packs over ranks: add --ds.packing_samples.")
    if name == ring_flash.NAME:
        ring_flash.require_ring_flash(device_type)
        return name
    return ring.NAME


def _best_packed(device_type: str) -> str:
    if device_type != "cuda":
        return per_sample.NAME
    installed = (name for name in _FASTEST_FLASH_FIRST if _is_installed(_FLASH_PACKAGES[name][0]))
    return next(installed, torch_varlen.NAME)


def _require_flash(name: str, device_type: str) -> None:
    module, install_line = _FLASH_PACKAGES[name]
    if not _is_installed(module):
        raise UserError(f"{FLAG} {name} needs a package that is not installed: {install_line} (or use auto).")
    if device_type != "cuda":
        raise UserError(f"{FLAG} {name} runs on CUDA only, not on {device_type}. Use auto.")


def _require_kernels(name: str) -> None:
    if not _is_installed("kernels"):
        raise UserError(f"{FLAG} {name} is a kernel of the hub and needs a package: pip install kernels (or use auto).")


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _reason_against(model_class: type[PreTrainedModel], config: PretrainedConfig) -> str | None:
    layer_types = set(config.layer_types or ()) if hasattr(config, "layer_types") else set()
    unknown = sorted(layer_types - _PACKABLE_LAYER_TYPES)
    if unknown:
        return f"it has layers of the type {', '.join(unknown)}, which would mix neighbouring samples"
    if carries_state(model_class):
        return "it carries a state along the sequence, from one sample into the next"
    if not takes_any_attention(model_class):
        return "its attention cannot be replaced by one that knows where samples end"
    if not takes_borders(model_class):
        return "its attention takes no borders of samples"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "its attention is not causal"
    return None
