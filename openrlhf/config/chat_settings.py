"""The settings of `chat`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

from openrlhf.config.disk import folder_of_model
from openrlhf.config.generate_settings import GeneratorConfig
from openrlhf.config.kinds import Fraction, Number, PositiveCount, WholeNumber
from openrlhf.config.schema import Command, Root, free
from openrlhf.config.synonyms import Synonyms

SYNONYMS: Synonyms = {"pretrain": "model.model_name_or_path"}


@dataclasses.dataclass(frozen=True)
class TalkConfig:
    """How it answers."""

    system: str | None = free(None, "system message that every conversation begins with")
    max_new_tokens: PositiveCount = free(512, "longest answer, in tokens")
    temperature: Number = free(0.7, "0: the likeliest token each time")
    top_p: Fraction = free(1.0, "sample from the likeliest tokens with that share of the probability")
    seed: WholeNumber = free(42, "of the answers' random numbers")
    param_dtype: Literal["auto", "bf16", "fp16", "fp32"] = free("auto", "type of the weights; auto: as they are saved")
    tokenizer_chat_template: str | None = free(
        None,
        "chat template in place of the tokenizer's; chatml is built in; without any, each line is continued as text",
    )


def needed(config: ChatConfig, world_size: int) -> Iterator[str]:
    if not config.model.model_name_or_path:
        yield "--model.model_name_or_path is missing: give the folder of a model, or its name on the hub."
    else:
        yield from folder_of_model("--model.model_name_or_path", config.model.model_name_or_path)
    if config.chat.top_p == 0:
        yield "--chat.top_p 0 leaves no token: give a number above 0, at most 1."


@dataclasses.dataclass(frozen=True)
class ChatConfig(Root):
    """A conversation with a model."""

    command: ClassVar[Command] = Command(
        "A conversation with a model: a line is a message, an empty line begins anew, Ctrl-D ends.",
        "python -m openrlhf.cli.chat",
        SYNONYMS,
        (needed,),
    )
    model: GeneratorConfig = GeneratorConfig()
    chat: TalkConfig = TalkConfig()
