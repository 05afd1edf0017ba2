"""The root of each command: its settings, checks and other names."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from openrlhf.config.checks import CHECKS_OF_TRAINING, COMMON_CHECKS, COMMON_NOTICES
from openrlhf.config.kinds import Count
from openrlhf.config.schema import Command, setting
from openrlhf.config.settings import TrainingConfig
from openrlhf.config.synonyms import COMMON_SYNONYMS


@dataclasses.dataclass(frozen=True)
class SFTConfig(TrainingConfig):
    """Optimizer, schedule and clipping."""

    command: ClassVar[Command] = Command(
        "Supervised fine-tuning.",
        "deepspeed --module openrlhf.cli.train_sft",
        COMMON_SYNONYMS,
        CHECKS_OF_TRAINING,
        COMMON_NOTICES,
    )


@dataclasses.dataclass(frozen=True)
class InspectConfig(SFTConfig):
    """Report; optimizer, schedule and clipping, as in training."""

    command: ClassVar[Command] = Command(
        "A look at the samples that train_sft would train on. It takes the same flags; no GPU is needed.",
        "python -m openrlhf.cli.inspect_data",
        COMMON_SYNONYMS,
        COMMON_CHECKS,
        COMMON_NOTICES,
    )
    html: str | None = setting(None, "file for the report as a page", resume="free")
    show: Count = setting(4, "samples shown in the terminal", resume="free")


ROOTS = (SFTConfig, InspectConfig)
