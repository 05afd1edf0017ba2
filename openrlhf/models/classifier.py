"""A model of transformers for sequence classification with one label, from a folder of any kind of base: found, loaded,
its head kept or begun."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from openrlhf.config.adapter_settings import LoraConfig
from openrlhf.engine.model_internals import backbone_name, forget_renaming, without_weights
from openrlhf.engine.parameters import gathered
from openrlhf.errors import UserError
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.models.loading import (
    PARAM_DTYPES,
    causal_lm_class,
    check_weights,
    four_bit_config,
    load_config,
    load_weights,
    make_ready,
    with_attention,
)
from openrlhf.models.lora import add_lora
from openrlhf.models.quantized import finish_plain_loading, plain_config

HEAD = "score"  # the name of the head in transformers' classes
_CLASSIFIER = "ForSequenceClassification"  # how the names of their classes end


def classifier_facts(
    pretrain_or_model: str | PreTrainedModel, param_dtype: str, trust_remote_code: bool = False
) -> ModelFacts:
    """What is known of a reward model before its weights are read; arguments as of `RewardModel`.

    Raises UserError where there is no model, or none that could be a reward model.
    """
    if isinstance(pretrain_or_model, PreTrainedModel):
        return ModelFacts(type(pretrain_or_model), pretrain_or_model.config, pretrain_or_model.dtype)
    path, config = pretrain_or_model, load_config(pretrain_or_model, trust_remote_code)
    found: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if found is None and not trust_remote_code:
        raise UserError(
            f"{path} is a {config.model_type} model, of which transformers has no classifier: choose another base for "
            "the reward model."
        )
    if _is_classifier(config) and config.num_labels != 1:
        labels = ", ".join(str(label) for label in list((config.id2label or {}).values())[:5])
        raise UserError(
            f"{path} is a classifier with {config.num_labels} labels ({labels}): a reward model has one. Give a reward "
            "model, or the model that the classifier was made of."
        )
    config.num_labels = 1
    return ModelFacts(found, config, PARAM_DTYPES[param_dtype])


def prepare_classifier(
    pretrain_or_model: str | PreTrainedModel,
    facts: ModelFacts,
    *,
    is_packed: bool,
    use_liger_kernel: bool,
    lora: LoraConfig,
    attn_implementation: str | None,
    **loading: Any,
) -> tuple[nn.Module, bool]:
    """The classifier that a reward model trains, and whether its head was begun here; arguments as of `RewardModel`.

    Args: facts: of `classifier_facts`; loading: more arguments of `_load_classifier`.
    """
    head_begins = False
    if isinstance(pretrain_or_model, str):
        model, head_begins = _load_classifier(
            pretrain_or_model, facts, attn_implementation=attn_implementation, **loading
        )
    else:
        model = with_attention(pretrain_or_model, attn_implementation)
        _check_head(model)
    make_ready(model, is_packed, use_liger_kernel)
    return (add_lora(model, lora) if lora.is_used else model), head_begins


def _load_classifier(
    path: str,
    facts: ModelFacts,
    *,
    param_dtype: str,
    attn_implementation: str | None,
    load_in_4bit: bool,
    device_map: Any,
    trust_remote_code: bool,
    head_prefix: str,
    head_seed: int,
    begin_head: bool,
) -> tuple[PreTrainedModel, bool]:
    dtype, renaming = PARAM_DTYPES[param_dtype], rf"^{re.escape(head_prefix)}\."
    config = plain_config(facts.config, path, load_in_4bit)
    with torch.random.fork_rng(devices=[]):  # transformers draws a head that is missing, on some ranks alone
        model, info = load_weights(
            AutoModelForSequenceClassification,
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            quantization_config=four_bit_config(dtype, skipped=[HEAD]) if load_in_4bit else None,
            device_map=device_map,
            key_mapping=None if head_prefix == HEAD else {renaming: f"{HEAD}."},
            trust_remote_code=trust_remote_code,
        )
    finish_plain_loading(model, config, path)
    forget_renaming(model, renaming)  # it is exported under transformers' name
    _check_head(model)
    begins = begin_head or (not _is_classifier(facts.config) and f"{HEAD}.weight" in info["missing_keys"])
    if begins:
        info = _without_heads(info, facts.config)
    check_weights(model, info, path, _hint_of_head(info, head_prefix))
    if begins:
        _start_head(getattr(model, HEAD), head_seed)
    return model, begins


def _check_head(model: PreTrainedModel) -> None:
    """Raises UserError where the model has no head of one output behind a backbone."""
    head = getattr(model, HEAD, None)
    if isinstance(head, nn.Linear) and head.out_features == 1 and backbone_name(model) is not None:
        return
    found = f"{head.out_features} outputs" if isinstance(head, nn.Linear) else type(head).__name__
    raise UserError(
        f"{type(model).__name__} has no head `{HEAD}` of one output (found: {found}): it cannot be a reward model."
    )


def _is_classifier(config: PretrainedConfig) -> bool:
    """Whether the folder holds a classifier, by what its config.json says."""
    return any(name.endswith(_CLASSIFIER) for name in config.architectures or ())


def _without_heads(info: dict[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """What was found in a base model's folder, without what must be so: the new head, the head of language."""
    missing = {name for name in info["missing_keys"] if not name.startswith(f"{HEAD}.")}
    unexpected, language_model = info["unexpected_keys"], causal_lm_class(config)
    if unexpected and language_model is not None:
        model = without_weights(language_model, config, "eager")
        own = model.state_dict()
        in_files = revert_weight_conversion(model, own)  # GPT-NeoX: embed_out.weight for lm_head.weight
        unexpected = {name for name in unexpected if name not in own and name not in in_files}
    return info | {"missing_keys": missing, "unexpected_keys": unexpected}


def _hint_of_head(info: dict[str, Any], head_prefix: str) -> list[str]:
    """Where the folder's head may have another name than was looked for."""
    names = sorted({name.partition(".")[0] for name in info["unexpected_keys"]})
    if not names:
        return []
    return [f"If {' or '.join(names)} is its head, say so by --ds.value_head_prefix (now {head_prefix})."]


@torch.no_grad()
def _start_head(head: nn.Linear, seed: int) -> None:
    """Small random weights by the seed alone, the same on every rank and in every layout."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, head.in_features, generator=draw) / (head.in_features + 1)
    with gathered(head.parameters(), writing=True):
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()
