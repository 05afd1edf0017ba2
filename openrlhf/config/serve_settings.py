"""The settings of `serve_rm`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

from openrlhf.config.disk import folder_of_model
from openrlhf.config.kinds import Count, Place, PositiveCount, Size
from openrlhf.config.schema import Command, Root, free
from openrlhf.config.synonyms import Switch, Synonyms

SYNONYMS: Synonyms = {
    "reward_pretrain": "reward.model_name_or_path",
    "normalize_reward": "reward.normalize_enable",
    "value_head_prefix": "reward.value_head_prefix",
    "attn_implementation": "reward.attn_implementation",
    "param_dtype": "reward.param_dtype",
    "max_len": "reward.max_len",
    "max_length": "reward.max_len",
    "bf16": Switch("reward.param_dtype", "bf16", "auto"),
    "flash_attn": Switch("reward.attn_implementation", "flash_attention_2", "auto"),
}
_MOST_PORT = 65535


@dataclasses.dataclass(frozen=True)
class ServedModelConfig:
    """The reward model."""

    model_name_or_path: Place = free("", "folder of a reward model with its tokenizer, or its name on the hub (needed)")
    param_dtype: Literal["auto", "bf16", "fp16", "fp32"] = free(
        "auto", "type of weights and activations; auto: the one that the model is saved in"
    )
    attn_implementation: str = free("auto", "attention back end; auto picks the best that is installed")
    value_head_prefix: str = free("score", "name of the head among the folder's weights")
    max_len: PositiveCount | None = free(
        None, "longest text, in tokens; longer ones are refused; none means as many as the model has positions"
    )
    max_tokens_per_batch: PositiveCount = free(16384, "tokens computed at once")
    normalize_enable: bool = free(False, "take mean and deviation of the rewards, kept in the model's config.json, off")
    trust_remote_code: bool = free(False, "run Python code that comes with the model or tokenizer")


def needed(config: ServeConfig, world_size: int) -> Iterator[str]:
    name = config.reward.model_name_or_path
    if name:
        yield from folder_of_model("--reward.model_name_or_path", name)
    else:
        yield "--reward.model_name_or_path is missing: give the folder of a reward model, or its name on the hub."
    if config.port > _MOST_PORT:
        yield f"--port {config.port} is no port: it must be at most {_MOST_PORT}."


@dataclasses.dataclass(frozen=True)
class ServeConfig(Root):
    """The server."""

    command: ClassVar[Command] = Command(
        "Serves the rewards of a reward model: POST /get_reward, GET /health.",
        "python -m openrlhf.cli.serve_rm",
        SYNONYMS,
        (needed,),
    )
    host: str = free("127.0.0.1", "address to listen at; 0.0.0.0: all of this machine's. Whoever reaches it may ask")
    port: Count = free(5000, "port; 0: any that is free")
    max_waiting: PositiveCount = free(4096, "texts that may wait; more are answered with 503")
    max_body: Size = free("64MB", "largest request")
    reward: ServedModelConfig = ServedModelConfig()
