"""The choice of attention: names a user may give, what `auto` takes, what is refused, what may be packed.

A model may be trained on packs if its every layer lets a token see its own sample only. Our own back ends become known
to transformers under their names when this file is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from openrlhf.engine.model_internals import (
    carries_state,
    computes_by_sdpa,
    sdpa_loses_soft_caps,
    takes_any_attention,
    takes_borders,
)
from openrlhf.errors import UserError
from openrlhf.models.attention.calls import AttentionCall, ModelFacts, attention_calls
from openrlhf.models.attention.flash import (
    PACKAGES,
    TORCH_VARLEN_CAPABILITIES,
    beyond_16_bits,
    beyond_gpu,
    is_flash,
    reason_against_flash,
)
from openrlhf.models.attention.per_sample import (
    PER_SAMPLE,
    TORCH_VARLEN,
    causal_mask_unwritten,
    per_sample_attention,
    torch_varlen_attention,
)
from openrlhf.models.attention.ring import (
    RING,
    RING_FLASH,
    RING_FLASH_REGISTERED,
    require_ring_flash,
    ring_attention,
    ring_flash_attention,
)
from openrlhf.models.limits import check_ring_dropout
from openrlhf.models.notes import tell

FLAG = "--ds.attn_implementation"
PLAIN = ("eager", "sdpa")  # transformers' own: no borders of samples, but right in a pack, with a T x T mask
_PACKABLE_LAYER_TYPES = {"full_attention", "sliding_attention"}
_REMEDY = "Remove --ds.packing_samples (and --ds.ring_attn_size) to train it on padded batches."
_OURS: dict[str, Callable[..., Any]] = {
    PER_SAMPLE: per_sample_attention,
    TORCH_VARLEN: torch_varlen_attention,
    RING: ring_attention,
    RING_FLASH_REGISTERED: ring_flash_attention,
}
for _name, _attention in _OURS.items():
    AttentionInterface.register(_name, torch.compiler.disable(_attention))  # loops over samples: nothing to fuse
    AttentionMaskInterface.register(_name, causal_mask_unwritten)


class CannotPack(UserError):
    """Samples in a pack could see one another."""


@dataclass(frozen=True)
class AttentionChoice:
    """What a model is loaded with."""

    name: str | None  # as transformers knows it; None: transformers' own choice
    note: str = ""  # for the start table: why it is not a faster one, or what it leaves to a slower one


def choose_attention(name: str, device_type: str, packed: bool, ring_size: int, model: ModelFacts) -> AttentionChoice:
    """The attention to load a model with.

    Args:
        name: what the user asked for: "auto", "eager", "sdpa", "flash_attention_2", "_3" or "_4", "per_sample",
            "torch_varlen", "ring", "ring_flash_attn", or a kernel of the hub such as "kernels-community/flash-attn2".
        device_type: "cpu" or "cuda".
        ring_size: ranks that share one pack; 1: none do.

    Raises:
        UserError: the name is unknown, needs what is not installed or does not import, or does not fit the model, the
            GPU, packing or the ring.
    """
    if ring_size > 1:
        return _choose_for_ring(name, device_type, packed)
    if name == "auto":
        return _best_packed(device_type, model) if packed else _own_of_transformers(model)
    if name == RING_FLASH:
        raise UserError(f"{FLAG} {name} shares packs over ranks: add --ds.ring_attn_size and --ds.packing_samples.")
    known = ("auto", *PLAIN, *PACKAGES, PER_SAMPLE, TORCH_VARLEN, RING, RING_FLASH)
    if name not in known and not is_flash(name):
        raise UserError(f"{FLAG} {name} is unknown. Known: {', '.join(known)}, or a kernel of the hub (owner/name).")
    if reason := _reason_against(name, device_type, model):
        raise UserError(f"{FLAG} {name}: {reason}. Or use auto.")
    return AttentionChoice(name, _slower_layers(attention_calls(model)) if name == TORCH_VARLEN else "")


def keeps_scores(name: str, device_type: str, packed: bool, ring_size: int, model: ModelFacts) -> bool:
    """Whether the backward pass keeps attention scores, (heads, L, L) of each sample, and not what kernels keep.

    Arguments as of `choose_attention`, which has taken them. A ring computes its blocks again.
    """
    if name == "eager" or ring_size > 1:
        return name == "eager"
    if not any(call.has_softcap or call.has_sinks for call in attention_calls(model) or ()):
        return False
    chosen = _best_packed(device_type, model).name if name == "auto" and packed else name
    return not is_flash(chosen or "")


def join_ring(model: Any, ring_size: int, packed: bool) -> str:
    """A model that was made without its ring computes what `ring_size` ranks share from now on: scripts of OpenRLHF's
    tell the strategy of it alone.

    Args: model: an Actor, or another model of ours, which has `attention`. Others are left as they are.
    Returns: what was changed, in words; '' for nothing. Raises UserError where the model cannot share sequences.
    """
    made_with = getattr(model, "attention", None)
    if ring_size == 1 or made_with is None or made_with.name in (RING, RING_FLASH_REGISTERED):
        return ""
    check_ring_dropout(model.config)
    model.attention = _choose_for_ring("auto", "", packed)
    model.scorer.base_model.set_attn_implementation(model.attention.name)
    return f"the model was not told of its ring of {ring_size} ranks: its attention is {RING} now"


def check_packable(model_class: type[PreTrainedModel], config: PretrainedConfig) -> None:
    """Raises CannotPack where samples in a pack could see one another.

    A model passes if all its layers attend fully or in a sliding window, if it hands its attention to transformers'
    interface, and if transformers says that kernels which take the borders of samples work in it.
    """
    text_config = config.get_text_config()
    reason = _reason_against_packs(model_class, text_config)
    if reason:
        name = model_class.__name__
        raise CannotPack(f"{name} cannot be trained on packed samples: {reason}. {_REMEDY}")


def looks_ahead(text_config: PretrainedConfig) -> bool:
    """Whether the configuration says that tokens see later ones."""
    # "vision": the tokens of an image see one another; there are none in text.
    is_bidirectional = getattr(text_config, "use_bidirectional_attention", None) not in (None, False, "vision")
    return is_bidirectional or not getattr(text_config, "is_causal", True)


def check_causal(model: PreTrainedModel) -> None:
    """Raises CannotPack for a model whose text layers look ahead, as encoders do; needs the model itself."""
    text_model: Any = model.get_decoder()  # without the encoders of a model that also sees or hears
    if any(getattr(module, "is_causal", True) is False for module in text_model.modules()):
        name = type(model).__name__
        raise CannotPack(f"{name} cannot be trained on packed samples: its attention is not causal. {_REMEDY}")


def _choose_for_ring(name: str, device_type: str, packed: bool) -> AttentionChoice:
    """OpenRLHF's scripts ask for a ring by the name of the kernel that ring-flash-attn computes its blocks with."""
    if name not in ("auto", RING, RING_FLASH) and not is_flash(name):
        raise UserError(
            f"{FLAG} {name} cannot share a sequence over ranks. With --ds.ring_attn_size use {RING}, "
            f"{RING_FLASH} or auto."
        )
    if not packed:
        raise UserError("--ds.ring_attn_size above 1 shares packs over ranks: add --ds.packing_samples.")
    if name == RING_FLASH:
        require_ring_flash(device_type)
        return AttentionChoice(RING_FLASH_REGISTERED)
    return AttentionChoice(RING, f"{name} with a ring: our own ring, which computes the same" if is_flash(name) else "")


def _own_of_transformers(model: ModelFacts) -> AttentionChoice:
    """transformers' own choice, but for a model whose soft caps that would leave out in silence."""
    by_sdpa = model.model_class is not None and computes_by_sdpa(model.model_class)
    if by_sdpa and sdpa_loses_soft_caps() and any(call.has_softcap for call in attention_calls(model) or ()):
        return AttentionChoice("eager", "not sdpa: this transformers would leave out the soft caps of its scores")
    return AttentionChoice(None)


def _best_packed(device_type: str, model: ModelFacts) -> AttentionChoice:
    if device_type != "cuda":
        return AttentionChoice(PER_SAMPLE)
    calls = attention_calls(model)
    candidates = ["flash_attention_2", TORCH_VARLEN]
    if beyond_gpu(PACKAGES["flash_attention_3"].capabilities) is None:
        candidates.insert(0, "flash_attention_3")
    passed_over: dict[str, list[str]] = {}  # names by the reason against them
    for name in candidates:
        reason = _reason_against_auto(name, model, calls)
        if reason is None:
            notes = [_slower_layers(calls)] if name == TORCH_VARLEN else []
            return AttentionChoice(name, "; ".join([*filter(None, notes), *_told(passed_over)]))
        passed_over.setdefault(reason, []).append(name)
    return AttentionChoice(PER_SAMPLE, "; ".join(_told(passed_over)))


def _told(passed_over: dict[str, list[str]]) -> list[str]:
    return [f"not {', '.join(names)}: {reason}" for reason, names in passed_over.items()]


def _reason_against_auto(name: str, model: ModelFacts, calls: frozenset[AttentionCall] | None) -> str | None:
    """`auto` takes nothing that it cannot vouch for, and no kernel that would compute no layer."""
    if reason := beyond_16_bits(model.dtype):
        return reason
    if name == TORCH_VARLEN:
        beyond = {call.beyond_torchs_kernel() for call in calls or ()}
        return beyond_gpu(TORCH_VARLEN_CAPABILITIES) or (
            f"every layer has {_listed(beyond)}" if beyond and None not in beyond else None
        )
    if calls is None:
        return "this model's attention cannot be tried without its weights"
    return reason_against_flash(name, "cuda", model, calls)


def _reason_against(name: str, device_type: str, model: ModelFacts) -> str | None:
    """Why the user cannot have what was asked for, with the remedy."""
    if is_flash(name):
        return reason_against_flash(name, device_type, model, attention_calls(model))
    if name == TORCH_VARLEN:
        if device_type != "cuda":
            return f"it runs on CUDA only, not on {device_type}. Use {PER_SAMPLE}"
        reason = beyond_16_bits(model.dtype) or beyond_gpu(TORCH_VARLEN_CAPABILITIES)
        return reason and f"{reason}. Use {PER_SAMPLE}"
    if model.model_class is None or name == "eager":
        return None
    class_name = model.model_class.__name__
    if name == "sdpa":
        beyond = any(call.has_softcap or call.has_sinks for call in attention_calls(model) or ())
        known = computes_by_sdpa(model.model_class) and not beyond
        return None if known else f"{class_name} does not compute by torch's scaled_dot_product_attention. Use eager"
    if not takes_any_attention(model.model_class):
        return f"{class_name} computes its attention itself, and takes no other"
    return None


def _slower_layers(calls: frozenset[AttentionCall] | None) -> str:
    """What torch's variable-length kernel leaves to our loop over samples."""
    beyond = {call.beyond_torchs_kernel() for call in calls or ()} - {None}
    return f"sample by sample in layers with {_listed(beyond)}" if beyond else ""


def _listed(reasons: set[str | None]) -> str:
    return ", ".join(sorted(filter(None, reasons)))


def _reason_against_packs(model_class: type[PreTrainedModel], config: PretrainedConfig) -> str | None:
    layer_types = set(config.layer_types or ()) if hasattr(config, "layer_types") else set()
    unknown = sorted(layer_types - _PACKABLE_LAYER_TYPES)
    if unknown:
        return f"it has layers of the type {', '.join(unknown)}, which would mix neighbouring samples"
    if carries_state(model_class) and not layer_types:  # a hybrid's class does; its layers may all be attention
        return "it carries a state along the sequence, from one sample into the next"
    if not takes_any_attention(model_class):
        return "its attention cannot be replaced by one that knows where samples end"
    if not takes_borders(model_class, config):
        return "its attention takes no borders of samples"
    return "its attention is not causal" if looks_ahead(config) else None


def as_taken(model: str, attn_implementation: str, device_type: str, unknown: Iterable[str]) -> str:
    """The attention to choose by, for a class of models. Tells of what a script asks for and cannot have."""
    for name in unknown:
        tell(f"{model} knows no {name}: it changes nothing.")
    if device_type == "cpu" and is_flash(attn_implementation):  # what OpenRLHF's scripts ask for by themselves
        tell(f"{attn_implementation} needs a GPU: the attention of {model} is chosen for the CPU.")
        return "auto"
    return attn_implementation
