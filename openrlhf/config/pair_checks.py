"""Checks of the settings of a training on pairs, for roots to list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from openrlhf.config.checks import CHECKS_OF_TRAINING
from openrlhf.config.disk import folder_of_model
from openrlhf.config.schema import Check

if TYPE_CHECKING:
    from openrlhf.config.pair_settings import DPOConfig, RMConfig
    from openrlhf.config.settings import TrainingConfig

# Their formulas are in `openrlhf.objectives.pair_losses`, in this order.
PAIR_LOSSES = (
    "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "apo_zero", "apo_down",
    "discopop", "sigmoid_norm", "simpo", "orpo", "sft",
)  # fmt: skip
LOSSES_WITH_SMOOTHING = ("sigmoid", "sigmoid_norm", "robust", "exo_pair", "aot", "simpo")  # others read no label
LOSSES_WITHOUT_REFERENCE = ("simpo", "orpo", "sft")
MOST_SMOOTHING_OF_ROBUST = 0.5  # and that is too much
MOST_WEIGHT = 1e9  # of a loss in a mix; float32 ends at 3e38


def _room_for_pairs(config: TrainingConfig, world_size: int) -> Iterator[str]:
    """The two answers of a pair stand in one micro-batch."""
    budget, longest = config.train.max_tokens_per_micro_batch, config.data.max_len
    if isinstance(budget, int) and longest <= budget * config.ds.ring_attn_size < 2 * longest:
        yield (
            f"--train.max_tokens_per_micro_batch {budget} has no room for the two answers of a pair, each of "
            f"--data.max_len {longest} tokens; raise the first or lower the second."
        )


def _no_answers(config: RMConfig, world_size: int) -> Iterator[str]:
    if config.eval.prompts is not None:
        yield "--eval.prompts needs a model that answers, and a reward model does not: leave it out."


def _margin(config: RMConfig, world_size: int) -> Iterator[str]:
    if config.model.margin_loss_enable and config.model.loss_type != "sigmoid":
        yield "--model.margin_loss_enable is of --model.loss_type sigmoid, logexp has no margin; leave one of them out."


def _losses(config: DPOConfig, world_size: int) -> Iterator[str]:
    model = config.model
    names = [name.strip() for name in model.loss_type.split(",")]
    if unknown := [name or "nothing beside a comma" for name in names if name not in PAIR_LOSSES]:
        yield (
            f"--model.loss_type {model.loss_type} names {', '.join(unknown)}; give losses of these, by commas: "
            f"{', '.join(PAIR_LOSSES)}."
        )
        return
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        yield f"--model.loss_type {model.loss_type} names {', '.join(repeated)} twice."
    if "robust" in names and model.label_smoothing >= MOST_SMOOTHING_OF_ROBUST:
        yield (
            f"--model.label_smoothing {model.label_smoothing:g} must be below {MOST_SMOOTHING_OF_ROBUST} for "
            "--model.loss_type robust."
        )
    read = {*names} - ({"sigmoid"} if model.ipo_enable else set())  # of which IPO is made
    if model.label_smoothing and read.isdisjoint(LOSSES_WITH_SMOOTHING):
        made = ", with --model.ipo_enable," if model.ipo_enable else ""
        yield (
            f"--model.label_smoothing {model.label_smoothing:g} changes nothing: --model.loss_type {model.loss_type}"
            f"{made} does not read it, {', '.join(LOSSES_WITH_SMOOTHING)} do. Leave it out, or name one of these."
        )
    if model.ipo_enable and len({"ipo", "sigmoid"}.intersection(names)) != 1:
        yield (
            f"--model.ipo_enable makes IPO of sigmoid or of ipo, and --model.loss_type {model.loss_type} must name one "
            "of the two."
        )
    if model.loss_weights is None:
        return
    weights = [word.strip() for word in model.loss_weights.split(",")]
    if len(weights) != len(names):
        yield (
            f"--model.loss_weights {model.loss_weights} gives {len(weights)} numbers, but --model.loss_type names "
            f"{len(names)}; give one number for each, by commas."
        )
    number = r"(\d+(\.\d*)?|\.\d+)([eE]-?\d+)?"
    if not all(re.fullmatch(number, word) and 0 < float(word) <= MOST_WEIGHT for word in weights):
        yield (
            f"--model.loss_weights {model.loss_weights} must be numbers above 0, at most {MOST_WEIGHT:g}, by commas: "
            "1,0.2."
        )


def _read_by_no_loss(config: DPOConfig, world_size: int) -> Iterator[str]:
    model, names = config.model, {*config.model.loss_type.replace(" ", "").split(",")}
    if model.simpo_gamma != type(model).simpo_gamma and "simpo" not in names:
        yield (
            f"--model.simpo_gamma {model.simpo_gamma:g} changes nothing: --model.loss_type {model.loss_type} does not "
            "read it. Leave it out, or name simpo."
        )
    if not names.issubset(LOSSES_WITHOUT_REFERENCE):
        return
    for field in fields(config.ref):
        if getattr(config.ref, field.name):
            yield (
                f"--ref.{field.name} changes nothing: --model.loss_type {model.loss_type} compares with no reference. "
                "Leave it out, or name a loss that does."
            )


def _reference(config: DPOConfig, world_size: int) -> Iterator[str]:
    ref, ds = config.ref, config.ds
    if ref.model_name_or_path is not None:
        yield from folder_of_model("--ref.model_name_or_path", ref.model_name_or_path)
    elif ref.offload and ds.lora.is_used and not ref.precompute:
        yield (
            "--ref.offload moves a second model, and with --ds.lora.rank the reference is the base under the adapters; "
            "leave it out, or give --ref.model_name_or_path."
        )
    if ref.offload and ds.tensor_parallel_size > 1:
        yield (
            f"--ref.offload does not go with --ds.tensor_parallel_size {ds.tensor_parallel_size}; leave one of them "
            "out."
        )


def _subsets(config: DPOConfig | RMConfig, world_size: int) -> Iterator[str]:
    if config.eval.subset_key is not None and not config.eval.dataset:
        yield f"--eval.subset_key {config.eval.subset_key} has nothing to evaluate: add --eval.dataset or leave it out."


CHECKS_OF_REWARDS: tuple[Check, ...] = (*CHECKS_OF_TRAINING, _room_for_pairs, _subsets, _no_answers, _margin)
CHECKS_OF_PREFERENCES: tuple[Check, ...] = (
    *CHECKS_OF_TRAINING,
    _room_for_pairs,
    _subsets,
    _losses,
    _read_by_no_loss,
    _reference,
)
