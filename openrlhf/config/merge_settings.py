"""The settings of `lora_combiner`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from openrlhf.config.schema import Command, Root
from openrlhf.config.settings import free


def _folders(config: MergeConfig, world_size: int) -> Iterator[str]:
    for flag, name in (("model_path", config.model_path), ("lora_path", config.lora_path)):
        if not name:
            yield f"--{flag} is missing: give a folder, or a name on the hub."
    if config.lora_path and not (Path(config.lora_path) / "adapter_config.json").is_file():
        yield f"--lora_path {config.lora_path} holds no adapter: it has no adapter_config.json."
    if not config.output_path.strip():
        yield "--output_path is missing: give a folder for the merged model."
    for flag, name in (("model_path", config.model_path), ("lora_path", config.lora_path)):
        if (
            config.output_path.strip()
            and Path(name).is_dir()
            and Path(config.output_path).resolve() == Path(name).resolve()
        ):
            yield f"--output_path {config.output_path} is --{flag} too, which would be lost; give another."


@dataclasses.dataclass(frozen=True)
class MergeConfig(Root):
    """Base, adapter, merged model."""

    command: ClassVar[Command] = Command(
        "Merges an adapter into its base model.", "python -m openrlhf.cli.lora_combiner", {}, (_folders,)
    )
    model_path: str = free("", "the base model: a folder, or a name on the hub (needed)")
    lora_path: str = free("", "folder of the adapter (needed)")
    output_path: str = free("", "folder of the merged model (needed)")
    param_dtype: Literal["bf16", "fp16", "fp32"] | None = free(None, "dtype of the merged model; none: the base's")
