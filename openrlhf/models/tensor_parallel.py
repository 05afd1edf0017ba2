"""The weights that tensor parallelism shares out: transformers' plan for a model.

Attention and MLP are shared by heads and by inner features. Embeddings, head, norms, routers and experts stay whole on
every rank: each then computes the same log-probs, and no collective is needed behind the last layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.engine.model_internals import values_in_layers
from openrlhf.errors import UserError

FLAG = "--ds.tensor_parallel_size"
_KNOWN_STYLES = {
    "colwise",  # each rank has rows of the weight, and computes a part of the output
    "rowwise",  # each rank has columns of the weight, and takes a part of the input
    "replicated_with_grad_allreduce",  # a norm that each rank applies to its own heads: whole, with partial gradients
}
_STAYS_WHOLE = re.compile(r"(^|\.)(experts|embed_tokens|lm_head)(\.|$)")
# Seen with transformers 5.23 and DeepSpeed 0.19.8.
_NOT_SHARED_OUT = {"llama4_text": "adds in place to what a shared layer gives, which DeepSpeed's layers do not allow"}


def check_tensor_parallel(config: PretrainedConfig, size: int) -> None:
    """Raises UserError where the model cannot be shared out over `size` ranks; needs no weights."""
    if size == 1:
        return
    text_config = config.get_text_config()
    if not _plan_of(text_config):
        raise UserError(
            f"transformers has no plan to share out a {text_config.model_type} model: leave {FLAG} out "
            "(ZeRO-3 saves memory too)."
        )
    if reason := _reason_against(text_config):
        raise UserError(f"a {text_config.model_type} model {reason}: leave {FLAG} out (ZeRO-3 saves memory too).")
    for name in ("num_attention_heads", "num_key_value_heads"):
        for number in sorted(filter(None, values_in_layers(text_config, name))):
            if number % size:
                raise UserError(
                    f"{FLAG} {size} does not divide the model's {name}, {number}: each rank takes whole heads."
                )


def tensor_parallel_plan(model: PreTrainedModel) -> dict[str, str]:
    """How each layer of a module that holds `model` is shared: by a pattern of layers' names, transformers' style.

    Raises UserError where a module that is shared out has weights beside its layers.
    """
    plan = {_layer(pattern): style for pattern, style in _plan_of(model.config.get_text_config()).items()}
    _refuse_weights_beside(plan, model)
    return plan


def layers_shared_out(model: nn.Module, config: PretrainedConfig) -> list[nn.Module]:
    """Those of which each rank holds a part; all others are whole on every rank."""
    plan = _plan_of(config.get_text_config())
    parted = [_layer(pattern) for pattern, style in plan.items() if style in ("colwise", "rowwise")]
    return [module for name, module in model.named_modules() if _is_one_of(parted, name)]


def _reason_against(text_config: PretrainedConfig) -> str | None:
    """What a model does, by its type or its configuration, that cannot be shared out."""
    if unknown := sorted(set(_plan_of(text_config).values()) - _KNOWN_STYLES):
        return f"is shared out in ways that {FLAG} does not know ({', '.join(unknown)})"
    if text_config.model_type in _NOT_SHARED_OUT:
        return _NOT_SHARED_OUT[text_config.model_type]
    if any(getattr(text_config, "activation_sparsity_pattern", None) or ()):  # Gemma 3n's
        return "keeps the largest of an MLP's inner features, of which each rank would see its own alone"
    return None


def _refuse_weights_beside(plan: Iterable[str], model: PreTrainedModel) -> None:
    """In a module that is shared out each rank applies them to its part, and would train them by that alone."""
    text_model: Any = model.get_decoder()  # an encoder of images or sounds computes nothing
    modules = dict(text_model.named_modules(prefix="text"))
    layers = dict.fromkeys(name for name in modules if _is_one_of(plan, name))
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in layers):
        weights = [name for name, _ in modules[parent].named_parameters(prefix=parent)]
        loose = [name for name in weights if name.rpartition(".")[0] not in layers]
        if loose:
            names = ", ".join(name.removeprefix(f"{parent}.") for name in loose)
            raise UserError(
                f"{type(model).__name__} has {names} in its {type(modules[parent]).__name__}, which {FLAG} cannot "
                "share out: leave it out (ZeRO-3 saves memory too)."
            )


def _layer(pattern: str) -> str:
    """The pattern of a plan, as one of whole names."""
    return r".*\." + re.escape(pattern).replace(r"\*", r"\d+")


def _is_one_of(layers: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(layer, name) for layer in layers)


def _plan_of(config: PretrainedConfig) -> dict[str, str]:
    """By pattern of a layer's name, how its weight is shared; without what stays whole here."""
    plan = getattr(config, "base_model_tp_plan", None) or {}
    return {pattern: style for pattern, style in plan.items() if not _STAYS_WHOLE.search(pattern)}
