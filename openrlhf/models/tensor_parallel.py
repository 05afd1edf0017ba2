"""The weights that tensor parallelism shares out: transformers' plan for a model.

Attention and MLP are shared by heads and by inner features. Embeddings, head, norms, routers and experts stay whole on
every rank: each then computes the same log-probs, and no collective is needed behind the last layer.
"""

from __future__ import annotations

import re

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.errors import UserError

FLAG = "--ds.tensor_parallel_size"
_KNOWN_STYLES = {
    "colwise",  # each rank has rows of the weight, and computes a part of the output
    "rowwise",  # each rank has columns of the weight, and takes a part of the input
    "replicated_with_grad_allreduce",  # a norm that each rank applies to its own heads: whole, with partial gradients
}
_STAYS_WHOLE = re.compile(r"(^|\.)(experts|embed_tokens|lm_head)(\.|$)")


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
    heads = {name: getattr(text_config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    for name, number in heads.items():
        if number is not None and number % size:
            raise UserError(f"{FLAG} {size} does not divide the model's {name}, {number}: each rank takes whole heads.")
    unknown = sorted(set(_plan_of(text_config).values()) - _KNOWN_STYLES)
    if unknown:
        raise UserError(
            f"a {text_config.model_type} model is shared out in ways that {FLAG} does not know ({', '.join(unknown)}): "
            "leave it out (ZeRO-3 saves memory too)."
        )


def tensor_parallel_plan(module: nn.Module, model: PreTrainedModel) -> dict[str, str]:
    """How each layer of `module`, which holds `model`, is shared: by a pattern of layers' names, transformers' style.

    Raises UserError where a module that is shared out has weights beside its layers, which would stay whole.
    """
    plan = {}
    for pattern, style in _plan_of(model.config.get_text_config()).items():
        layer = r".*\." + re.escape(pattern).replace(r"\*", r"\d+")
        for name, _ in module.named_modules():
            if re.fullmatch(layer, name):
                _refuse_loose_weights(model, module.get_submodule(name.rpartition(".")[0]))
        plan[layer] = style
    return plan


def layers_shared_out(model: nn.Module, config: PretrainedConfig) -> list[nn.Module]:
    """Those of which each rank holds a part; all others are whole on every rank."""
    plan = _plan_of(config.get_text_config())
    parted = [pattern for pattern, style in plan.items() if style in ("colwise", "rowwise")]
    layer = re.compile("|".join(r".*\." + re.escape(one).replace(r"\*", r"\d+") for one in parted) or "(?!)")
    return [module for name, module in model.named_modules() if layer.fullmatch(name)]


def _refuse_loose_weights(model: PreTrainedModel, parent: nn.Module) -> None:
    loose = [name for name, _ in parent.named_parameters(recurse=False)]
    if loose:
        raise UserError(
            f"{type(model).__name__} has {', '.join(loose)} in its {type(parent).__name__}, which {FLAG} cannot share "
            "out: leave it out (ZeRO-3 saves memory too)."
        )


def _plan_of(config: PretrainedConfig) -> dict[str, str]:
    """By pattern of a layer's name, how its weight is shared; without what stays whole here."""
    plan = getattr(config, "base_model_tp_plan", None) or {}
    return {pattern: style for pattern, style in plan.items() if not _STAYS_WHOLE.search(pattern)}
