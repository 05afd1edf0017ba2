"""Settings of an upload to the hub: beside a training, and of a command of its own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from openrlhf.config.schema import Command, Root, setting

_MODEL_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """Upload of the exported model to the hub at HF_ENDPOINT. The token belongs in the environment: HF_TOKEN."""

    push: bool = setting(False, "upload the model when it is exported", resume="free")
    model_id: str | None = setting(None, "owner/name of the repository; it is made if need be", resume="free")
    private: bool = setting(True, "a repository that is made is private", resume="free")
    revision: str | None = setting(None, "branch; it is made if need be", resume="free")
    tags: tuple[str, ...] | None = setting(None, "tags of the model's card", resume="free")


def hub(config: Any, world_size: int) -> Iterator[str]:
    """An upload to nowhere."""
    model_id = config.hub.model_id
    if config.hub.push and not model_id:
        yield "--hub.push needs a repository: add --hub.model_id owner/name."
    if model_id and not _MODEL_ID.fullmatch(model_id):
        yield f"--hub.model_id {model_id} must be owner/name, of letters, digits, '-', '_' and '.'."


@dataclasses.dataclass(frozen=True)
class ExportedConfig:
    """The model."""

    output_dir: str = setting("./ckpt", "folder of the exported model", resume="free")


def _needed(config: PushConfig, world_size: int) -> Iterator[str]:
    if not config.hub.model_id:
        yield "--hub.model_id is missing: give owner/name of the repository."


@dataclasses.dataclass(frozen=True)
class PushConfig(Root):
    """An upload."""

    command: ClassVar[Command] = Command(
        "Uploads an exported model, its card and its metrics to the hub; a push that failed is done again so.",
        "python -m openrlhf.cli.push",
        {"output_dir": "ckpt.output_dir"},
        (_needed, hub),
    )
    ckpt: ExportedConfig = ExportedConfig()
    hub: HubConfig = HubConfig()
