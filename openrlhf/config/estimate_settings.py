"""The settings of `estimate_memory`: those of train_sft, and the machine that it is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

from openrlhf.config.checks import LAYOUT_CHECKS
from openrlhf.config.disk import model_folder
from openrlhf.config.kinds import PositiveCount, Size
from openrlhf.config.schema import Command
from openrlhf.config.settings import SFTConfig, free
from openrlhf.config.synonyms import COMMON_SYNONYMS


def _of_its_ranks(config: EstimateConfig, world_size: int) -> Iterator[str]:
    if not config.model.model_name_or_path:
        yield "--model.model_name_or_path is missing: give a folder with a config.json, or a name on the hub."
    for check in LAYOUT_CHECKS:
        yield from check(config, config.ranks)


@dataclasses.dataclass(frozen=True)
class EstimateConfig(SFTConfig):
    """Machine; optimizer, schedule and clipping, as in training."""

    command: ClassVar[Command] = Command(
        "The memory that a rank of train_sft needs, by ZeRO stage, offload and checkpointing. It takes the flags of "
        "train_sft and reads the model's config.json alone: no weights, no data, no GPU.",
        "python -m openrlhf.cli.estimate_memory",
        COMMON_SYNONYMS,
        (_of_its_ranks, model_folder),
    )
    ranks: PositiveCount = free(1, "ranks of the run")
    memory: Size | None = free(
        None,
        "memory of a rank's device, such as 80GiB, which a card called 80GB has (80GB is 74.5 GiB); none: what this "
        "machine has free",
    )
    device: Literal["cuda", "cpu"] = free("cuda", "what a rank computes on")
