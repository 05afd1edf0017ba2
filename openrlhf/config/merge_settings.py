"""The settings of `lora_combiner`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from openrlhf.config.disk import ADAPTER_FILE, split_names
from openrlhf.config.kinds import Place
from openrlhf.config.outputs import model_of_nobody
from openrlhf.config.schema import Command, Root, free
from openrlhf.config.synonyms import Switch, Synonyms

SYNONYMS: Synonyms = {"bf16": Switch("param_dtype", "bf16", None)}


def _folders(config: MergeConfig, world_size: int) -> Iterator[str]:
    for flag, name in (("model_path", config.model_path), ("lora_path", config.lora_path)):
        if not name:
            yield f"--{flag} is missing: give a folder, or a name on the hub."
    for path in config.lora_paths:
        if not (Path(path) / ADAPTER_FILE).is_file():
            yield f"--lora_path {path} holds no adapter: it has no {ADAPTER_FILE}."
    if not config.output_path.strip():
        yield "--output_path is missing: give a folder for the merged model."
    for flag, name in (("model_path", config.model_path), *(("lora_path", path) for path in config.lora_paths)):
        if (
            config.output_path.strip()
            and Path(name).is_dir()
            and Path(config.output_path).resolve() == Path(name).resolve()
        ):
            yield f"--output_path {config.output_path} is --{flag} too, which would be lost; give another."
            return
    yield from model_of_nobody("--output_path", config.output_path)


@dataclasses.dataclass(frozen=True)
class MergeConfig(Root):
    """Base, adapters, merged model."""

    command: ClassVar[Command] = Command(
        "Merges adapters into their base model.", "python -m openrlhf.cli.lora_combiner", SYNONYMS, (_folders,)
    )
    model_path: Place = free("", "the base model: a folder, or a name on the hub (needed)")
    lora_path: str = free("", "folder of the adapter; several by commas are merged one after the other (needed)")
    output_path: Place = free("", "folder of the merged model (needed)")
    param_dtype: Literal["bf16", "fp16", "fp32"] | None = free(None, "dtype of the merged model; none: the base's")

    @property
    def lora_paths(self) -> list[str]:
        return split_names(self.lora_path) if self.lora_path else []
