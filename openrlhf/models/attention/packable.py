"""Which models may be trained on packs: those whose every layer lets a token see its own sample only, by our word."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.errors import UserError

_PACKABLE_LAYER_TYPES = {"full_attention", "sliding_attention"}
_REMEDY = "Remove --ds.packing_samples (and --ds.ring_attn_size) to train it on padded batches."


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


def _reason_against(model_class: type[PreTrainedModel], config: PretrainedConfig) -> str | None:
    layer_types = set(config.layer_types or ()) if hasattr(config, "layer_types") else set()
    unknown = sorted(layer_types - _PACKABLE_LAYER_TYPES)
    if unknown:
        return f"it has layers of the type {', '.join(unknown)}, which would mix neighbouring samples"
    if model_class._is_stateful:
        return "it carries a state along the sequence, from one sample into the next"
    if not model_class._supports_attention_backend:
        return "its attention cannot be replaced by one that knows where samples end"
    if not model_class._supports_flash_attn:
        return "its attention takes no borders of samples"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "its attention is not causal"
    return None
