"""Limits of a model or a processor, found before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.engine.model_internals import recomputes_layers
from openrlhf.engine.torch_operators import cpu_computes_fp16
from openrlhf.errors import UserError

# Seen by `python -m tests.zoo.zero3 --unrefused`, with transformers 5.23 and DeepSpeed 0.19.8.
NOT_UNDER_ZERO3 = {
    "deepseek_v4": "loses its last norm's weight where transformers loads it in parts",
    "jetmoe": "needs weights in its backward pass that ZeRO-3 has taken away by then",
    "qwen4_exp": "lets ranks gather unlike weights at one time, which ends them",
    "qwen4_exp_text": "lets ranks gather unlike weights at one time, which ends them",
}
_POSITIONS = ("max_position_embeddings", "max_target_positions", "max_seq_len")  # the last two: Whisper's and MPT's
# Their first token stands at the position behind that of padding, in a table of as many rows as they name positions.
_COUNT_FROM_PADDING = {
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
_LARGEST = {"num_hidden_layers": 10_000, "hidden_size": 1_000_000, "vocab_size": 100_000_000}
_EXTENDING = ("linear", "yarn")  # others, such as llama3 and longrope, come with the positions that they make


def check_sizes(text_config: PretrainedConfig, path: str) -> None:
    """Raises UserError for a size that no model has: such a model could not even be counted."""
    for name, largest in _LARGEST.items():
        size = getattr(text_config, name, None)
        if isinstance(size, int) and not 0 < size <= largest:
            raise UserError(
                f"{path}: its config.json has {name} {size:,}, where 1 to {largest:,} can be. Repair the file, or take "
                "it from the model's origin."
            )


def num_positions(config: PretrainedConfig) -> int | None:
    """As many tokens as the model's positions are made for; None where it does not say, or where they go on.

    A scaling of rotary positions that was added to the configuration extends them, whether `max_position_embeddings`
    was raised with it or not.
    """
    config = config.get_text_config()
    positions = getattr(config, _name_of_positions(config), None)
    if not positions or positions < 0:
        return None
    positions -= _num_up_to_padding(config)
    scalings = _rope_scalings(config)
    if any("dynamic" in rope_type for rope_type, _ in scalings):
        return None
    is_nested = len(scalings) > 1  # as Gemma 3's, whose positions are raised already
    extending = ("yarn",) if is_nested else _EXTENDING
    return int(max([positions, *(_extended(positions, rope) for kind, rope in scalings if kind in extending)]))


def _name_of_positions(text_config: PretrainedConfig) -> str:
    return next((name for name in _POSITIONS if hasattr(text_config, name)), _POSITIONS[0])


def _num_up_to_padding(text_config: PretrainedConfig) -> int:
    """Rows of its table of positions that no token has."""
    return (text_config.pad_token_id or 0) + 1 if text_config.model_type in _COUNT_FROM_PADDING else 0


def _rope_scalings(config: PretrainedConfig) -> list[tuple[str, dict[str, Any]]]:
    """(type, parameters) of the rotary positions, or of each type of layers that has some of its own."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [one for one in parameters.values() if isinstance(one, dict)]
    found = nested or [parameters]
    return [(str(one.get("rope_type", one.get("type", "default"))), one) for one in found]


def _extended(positions: int, rope: dict[str, Any]) -> float:
    return (rope.get("factor") or 1.0) * (rope.get("original_max_position_embeddings") or positions)


def check_positions(config: PretrainedConfig, num_tokens: int, sample_name: str) -> None:
    """Raises UserError where a sample, the longest one, has more tokens than the model has positions.

    Args:
        num_tokens: of that sample.
        sample_name: where it stands, for the message.
    """
    positions, text_config = num_positions(config), config.get_text_config()
    if positions is not None and positions < num_tokens:
        num_unused = _num_up_to_padding(text_config)
        less = f", less the {num_unused} up to its pad_token_id" if num_unused else ""
        raise UserError(
            f"{sample_name} has {num_tokens:,} tokens, the model {positions:,} positions "
            f"({_name_of_positions(text_config)} in its config.json{less}): give --data.max_len {positions}, which "
            "drops longer samples, or cuts them with --data.overlong truncate."
        )


def check_vocabulary(config: PretrainedConfig, smallest_id: int, largest_id: int, what: str) -> None:
    """Raises UserError where data hold a token id that the model has no embedding for: a GPU would only abort.

    Args: what: the data's name, for the message.
    """
    num_ids = config.get_text_config().vocab_size
    if smallest_id < 0 or largest_id >= num_ids:
        raise UserError(
            f"{what}: its token ids go from {smallest_id:,} to {largest_id:,}, but the model's vocabulary has "
            f"{num_ids:,} (vocab_size in its config.json): the tokenizer, or the rows' input_ids, are of another model."
        )


def has_embedding(config: PretrainedConfig, token_id: int) -> bool:
    """Whether the model's vocabulary holds that id; a token that was added without a resize lies beyond it."""
    return token_id < config.get_text_config().vocab_size


def padding_id(config: PretrainedConfig, pad_token_id: int | None) -> int:
    """What fills places that are masked: the tokenizer's pad token, or 0 where the model has no embedding for it."""
    return pad_token_id if pad_token_id is not None and has_embedding(config, pad_token_id) else 0


def outside_vocabulary(config: PretrainedConfig, token_ids: Sequence[int] | np.ndarray) -> str | None:
    """Why the model cannot read token ids, as a sentence's end; None where it can."""
    num_ids, largest = config.get_text_config().vocab_size, int(np.max(token_ids, initial=0))
    if largest < num_ids:
        return None
    return f"the tokenizer is of another model: its token id is {largest:,}, and the model's vocabulary has {num_ids:,}"


def check_outputs(config: PretrainedConfig) -> None:
    """Raises UserError where the model is to give something else than hidden states by name."""
    for part in (config, config.get_text_config()):
        if getattr(part, "output_attentions", False):
            raise UserError(
                "The model's config.json has output_attentions true: its attention scores would be kept at each step, "
                "and transformers saves no such model unless its attention is eager. Set it to false, or take it out."
            )
        if getattr(part, "return_dict", True) is False:
            raise UserError(
                "The model's config.json has return_dict false, and its outputs are read by their names here: set it "
                "to true, or take it out."
            )


def check_dtype(param_dtype: str, device_type: str) -> None:
    """Raises UserError where DeepSpeed would refuse to train in float16: on most processors."""
    if param_dtype == "fp16" and device_type == "cpu" and not cpu_computes_fp16():
        raise UserError("--ds.param_dtype fp16: this processor does not compute in float16. Use bf16 or fp32.")


def check_checkpointing(model_class: type[PreTrainedModel]) -> None:
    """Raises UserError where transformers cannot recompute the layers of this class."""
    if not recomputes_layers(model_class):
        raise UserError(
            f"{model_class.__name__} cannot recompute its layers in the backward pass: leave "
            "--model.gradient_checkpointing_enable out."
        )


def check_zero3(config: PretrainedConfig, zero_stage: int) -> None:
    """Raises UserError for a type of model that is known to crash under ZeRO-3."""
    if zero_stage == 3 and config.model_type in NOT_UNDER_ZERO3:
        reason = NOT_UNDER_ZERO3[config.model_type]
        raise UserError(f"--ds.zero_stage 3: {config.model_type} {reason}. Use --ds.zero_stage 0, 1 or 2.")


def check_ring_dropout(config: PretrainedConfig) -> None:
    """Raises UserError where the model drops attention weights in training, which a ring cannot."""
    fields = config.get_text_config().to_dict()
    name = next((name for name, value in fields.items() if re.search("att.*drop", name) and value), None)
    if name is not None:
        raise UserError(
            f"--ds.ring_attn_size: a ring has no attention dropout, the model has {name} {fields[name]:g}: set it to "
            "0 in its config.json."
        )
