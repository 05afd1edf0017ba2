"""A small model of any type: its default configuration, with every field made small by the kind of its name.

`small_config` walks the fields, of sub-configurations too. A field whose name matches a rule of `_NUMBERS` takes the
rule's value; lists with an entry a layer keep one layer of each kind; dropout is off; soft caps and windows are so
low that a leak shows. A type that needs more has a line in `EXCEPTIONS`. What is large all the same is found by
counting parameters before any memory is taken, and told with the name of the largest one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MOST_PARAMETERS = 5_000_000
VOCABULARY = 300
ORDINARY_TOKENS = (10, 256)  # what rows are drawn from: below and above stand special tokens
WINDOW = 16  # tokens
POSITIONS = 256
_HEADS, _HEAD_SIZE, _HIDDEN, _INNER, _EXPERTS, _LAYERS = 4, 16, 64, 96, 8, 4


class CannotBeBuilt(Exception):
    """Why there is no small model of this type."""


def _special_token(number: int) -> int:
    return number if number < ORDINARY_TOKENS[0] else ORDINARY_TOKENS[1] + number % 40


def _at_most(limit: int) -> Callable[[int], int]:
    return lambda number: min(number, limit)


_NUMBERS: Sequence[tuple[str, int | Callable[[int], int]]] = (  # a whole name's pattern; the first match holds
    (r".*token_(id|index)", _special_token),
    (r"original_max_position_embeddings|floor_scale|log_scaling_n_floor", 4 * WINDOW),  # within the rows' lengths
    (r"(?!task_type|type|prompt|segment).*vocab(_size)?(_base|_per_layer_input)?", VOCABULARY),
    (r".*(max_position_embeddings|max_seq_len|max_length|n_positions|n_ctx|_positions|context_length)", POSITIONS),
    (r".*(sliding_window(_size)?|attention_window_size|chunk_size|window_len|local_attention|block_size)", WINDOW),
    (r"window_size|rel_extent|keep_window_size|.*attn_chunk_length", WINDOW),
    (r"num_kv_shared_layers|num_dense_layers|first_k_dense_replace|max_window_layers|.*_offset", _at_most(1)),
    (r".*_(interval|period|every_n_layers|layer_step|group_size)|_?sliding_window_pattern", _at_most(2)),
    (r"(num_|n_)?(hidden_|decoder_|encoder_|lstm_)?(layers?|blocks)|depth|.*_num_hidden_layers|num_layers.*", _LAYERS),
    (r"index_n_heads", _at_most(32)),  # of few heads many scores are 0, and which of equal ones is taken means nothing
    (r"index_topk", 8),  # fewer than a row has tokens
    (r".*(num_experts_per_tok(en)?|top_?k|moe_k|_topk)", _at_most(2)),
    (r"topk_group", 1),
    (r"n_group|num_expert_group|n_groups|mamba_n_groups|o_groups", _at_most(2)),
    (r".*((num|n_local|n_routed|local)_experts|n_routed_experts|zero_expert_num)", _EXPERTS),
    (r".*(linear_num_key_heads|key_value_heads|kv_heads|kv_n_heads|query_groups)", _at_most(2)),
    (r"mamba_(n|num)_heads|n_mamba_heads", 8),
    (r".*(n_heads?|num_heads|attention_heads?|num_value_heads)", _at_most(_HEADS)),
    (r"qk_head_dim", 2 * _HEAD_SIZE),
    (r".*(head_dim|head_size|headdim|d_head|dim_head|d_kv|kv_channels|qk_nope_head_dim|d_rel)", _at_most(_HEAD_SIZE)),
    (r"query_pre_attn_scalar|rotary_dim", _HEAD_SIZE),
    (r".*(lora_rank|_rank|lowrank|d_state|state_size)", _HEAD_SIZE),
    (r".*(intermediate|ffn|dff|d_ff|dim_ff|mlp_dim|feed_forward|d_inner|n_inner).*", _INNER),
    (r".*(hidden_size|d_model|n_embd|embed_dim|emb_dim|embedding_dim|embedding_size|lru_width|proj_dim).*", _HIDDEN),
    (r"adapter_(in_dim|out_dim|input_size)", _HIDDEN),
    (r"mamba_d_ssm", 2 * _HIDDEN),
)  # fmt: skip
_FLOATS: Sequence[tuple[str, float]] = (
    (r".*(drop|jitter).*", 0.0),
    (r".*soft_?cap.*", 3.0),
    (r"attention_multiplier", _HEAD_SIZE**-0.5),
)
_SWITCHES: Sequence[tuple[str, bool]] = ((r"is_decoder", True), (r"use_mamba_kernels", False))
_MISSING: Sequence[tuple[str, int]] = (  # what a default configuration leaves out, and a real one has
    (r"head_dim", _HEAD_SIZE),
    (r"n_routed_experts|num_experts", _EXPERTS),
    (r"num_experts_per_tok", 2),
    (r"moe_intermediate_size", _INNER),
    (r"n_shared_experts", 1),
    (r"num_key_value_heads", 2),
)
_OF_ALL_MODELS = {field.name for field in dataclasses.fields(PretrainedConfig)} - {"chunk_size_feed_forward"}

_DOTS3_WINDOWED = dict(head_dim=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, num_key_value_heads=4)
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
EXCEPTIONS: dict[str, dict[str, Any]] = {  # by type, also of a sub-configuration: fields
    "cohere_compass_text": dict(rope_parameters={"full_attention": _ROPE, "sliding_attention": _ROPE}),
    "dbrx": {"attn_config.rope_theta": 10_000.0, "attn_config.clip_qkv": 8.0},
    "dots3_note_text": dict(per_layer_config={2: _DOTS3_WINDOWED, 3: _DOTS3_WINDOWED}),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "lfm2_moe": dict(layer_types=["conv", "full_attention", "conv", "full_attention"]),
    "mamba2": dict(num_heads=8),
    "qwen4_exp_text": dict(
        indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=8, indexer_compress_ratio=2
    ),
    "reformer": dict(axial_pos_embds_dim=(32, 32), axial_pos_shape=(16, 16)),
    "xmod": dict(default_language="en_XX"),
    "zamba": dict(
        layers_block_type=["linear_attention", "hybrid"] * 2, attention_hidden_size=128, attention_head_dim=32
    ),
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # more than a default configuration shows: type, fields
    "llama, dynamic rope": (
        "llama",
        dict(rope_parameters={**_ROPE, "rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=4 * WINDOW),
    ),
    "llama, tied": ("llama", dict(tie_word_embeddings=True, num_key_value_heads=2)),
    "phi3, longrope": (
        "phi3",
        dict(
            rope_parameters={
                **_ROPE,
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0],
                "original_max_position_embeddings": 4 * WINDOW,
            }
        ),
    ),
    "qwen2, sliding window": (
        "qwen2",
        dict(use_sliding_window=True, sliding_window=WINDOW, layer_types=["full_attention", "sliding_attention"] * 2),
    ),
    "qwen3_moe, dense layers only": ("qwen3_moe", dict(mlp_only_layers=[0, 1, 2, 3])),
    "gemma4_text, shared keys": (
        "gemma4_text",
        dict(
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            per_layer_config={1: dict(head_dim=2 * _HEAD_SIZE), 3: dict(head_dim=2 * _HEAD_SIZE)},
        ),
    ),
    "granitemoehybrid, attention only": ("granitemoehybrid", dict(layer_types=["full_attention"] * 4)),
    "gemma3_text, bidirectional": ("gemma3_text", dict(use_bidirectional_attention=True)),
    "bert, encoder": ("bert", dict(is_decoder=False)),
}


def all_names() -> list[str]:
    """Every type of transformers' mapping, and the variants."""
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]


def small_model_named(name: str) -> PreTrainedModel:
    """Args: name: of `all_names`. Raises CannotBeBuilt."""
    model_type, fields = VARIANTS.get(name, (name, {}))
    return small_model(small_config(model_type, **fields))


def small_config(model_type: str, **fields: Any) -> PretrainedConfig:
    """Args: fields: in place of what the rules give; of sub-configurations with a dot. Raises CannotBeBuilt."""
    try:
        return _shrunk(CONFIG_MAPPING[model_type](), fields)
    except Exception as error:
        raise CannotBeBuilt(f"no configuration: {in_short(error)}") from error


def small_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model with large seeded weights, biases and norms included. Raises CannotBeBuilt."""
    try:
        with torch.device("meta"):
            _check_size(AutoModelForCausalLM.from_config(config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            _draw_weights(model)
    except CannotBeBuilt:
        raise
    except Exception as error:
        raise CannotBeBuilt(in_short(error)) from error
    return model


def _draw_weights(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.15 * torch.randn_like(parameter)
            parameter.copy_(parameter + noise / 2 if parameter.ndim == 1 else noise)
        for name, buffer in model.named_buffers():
            if "bias" in name and buffer.is_floating_point():  # of a router, which trained models have
                buffer.add_(0.1 * torch.randn_like(buffer))


def _check_size(model: nn.Module) -> None:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if sum(sizes.values()) > MOST_PARAMETERS:
        largest = max(sizes, key=lambda name: sizes[name])
        shape = tuple(model.get_parameter(largest).shape)
        raise CannotBeBuilt(f"{sum(sizes.values()):,} parameters; {largest} has the shape {shape}")


def _shrunk(config: PretrainedConfig, changes: dict[str, Any]) -> PretrainedConfig:
    names = [field.name for field in dataclasses.fields(config) if field.init]
    old = {name: vars(config).get(config.attribute_map.get(name, name)) for name in names}
    old["per_layer_config"] = config.to_dict().get("per_layer_config")  # fields that single layers have of their own
    layers = _Layers(old)
    changes = {**EXCEPTIONS.get(config.model_type, {}), **changes}
    new = {name: change for name, change in changes.items() if "." not in name}
    for name, value in old.items():
        below = {key.removeprefix(f"{name}."): change for key, change in changes.items() if key.startswith(f"{name}.")}
        if name in new:
            continue
        if isinstance(value, PretrainedConfig):
            new[name] = _shrunk(value, below)
        elif name not in _OF_ALL_MODELS:
            small = _small(name, value, layers, old)
            if small != value:
                new[name] = small
    return type(config)(**new)


def _small(name: str, value: Any, layers: _Layers, fields: dict[str, Any]) -> Any:
    if value is None:
        return _by_name(_MISSING, name, value)
    if isinstance(value, bool):
        return _by_name(_SWITCHES, name, value)
    if isinstance(value, int):
        return layers.number if name == layers.name else _small_number(name, value, fields)
    if isinstance(value, float):
        return _by_name(_FLOATS, name, value)
    if name == "per_layer_config":
        return layers.of_single_layers(value, fields)
    if isinstance(value, dict):
        return {key: _small(key, entry, layers, fields) for key, entry in value.items()}
    if name == "mrope_section":
        return _sections(value, _HEAD_SIZE / fields["head_dim"])
    if isinstance(value, (list, tuple)):
        return type(value)(_by_name(_NUMBERS, name, x) if type(x) is int and x > 1 else x for x in layers.list(value))
    return value


def _small_number(name: str, value: int, fields: dict[str, Any]) -> int:
    if value <= 1:
        return value
    if name == "num_key_value_heads" and "kv_lora_rank" in fields:  # latent attention has as many as query heads
        return _HEADS
    return _by_name(_NUMBERS, name, value)


def _by_name(rules: Sequence[tuple[str, Any]], name: str, value: Any) -> Any:
    for pattern, small in rules:
        if re.fullmatch(pattern, name):
            return small(value) if callable(small) else small
    return value


def _sections(sections: list[int], scale: float) -> list[int]:
    small = [int(section * scale) for section in sections]
    return [small[0] + round(sum(sections) * scale) - sum(small), *small[1:]]


class _Layers:
    """Which layers of the default configuration a small one keeps: the first of each kind, at most four."""

    def __init__(self, fields: dict[str, Any]):
        is_number = re.compile(r"(num_hidden|num|n|decoder|num_decoder|encoder)_layers?").fullmatch
        self.name = next((name for name, value in fields.items() if is_number(name) and isinstance(value, int)), "")
        self._old = fields.get(self.name, 0)
        lists = [value for value in fields.values() if self._is_by_layer(value)]
        indices = [value for value in fields.values() if self._is_of_indices(value)]
        own = {int(place): one for place, one in (fields["per_layer_config"] or {}).items()}
        kinds = [
            (*(str(one[i]) for one in lists), *(i in one for one in indices), str(own.get(i))) for i in range(self._old)
        ]
        firsts = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
        kept = sorted(firsts.values())[:_LAYERS]
        kept += [i for i in range(self._old) if i not in kept][: max(0, min(_LAYERS, self._old) - len(kept))]
        self._kept = sorted(kept)
        self.number = len(self._kept)

    def list(self, value: Any) -> Any:
        if self._is_by_layer(value):
            return type(value)(value[i] for i in self._kept)
        if self._is_of_indices(value):
            return type(value)(new for new, old in enumerate(self._kept) if old in value)
        return value

    def of_single_layers(self, value: Any, fields: dict[str, Any]) -> Any:
        """What is larger than in other layers stays larger."""
        own = {int(place): one for place, one in value.items()}
        return {
            new: {
                name: _small_number(name, number, fields) * (2 if name == "head_dim" and number > fields[name] else 1)
                for name, number in own[old].items()
            }
            for new, old in enumerate(self._kept)
            if old in own
        }

    def _is_by_layer(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and self._old > 1 and len(value) == self._old

    def _is_of_indices(self, value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or not value or self._is_by_layer(value):
            return False
        is_number = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
        return is_number and list(value) == sorted(set(value)) and value[-1] < self._old


def in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_sentence(str(error))[:160]}"


def first_sentence(message: str) -> str:
    return re.split(r"(?<=[a-z)\"'0-9])\. ", " ".join(message.split()))[0].rstrip(".")
