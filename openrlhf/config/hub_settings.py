"""Settings of an upload to the hub: beside a training, and of a command of its own."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from openrlhf.config.kinds import Place
from openrlhf.config.schema import Command, Root, setting

_MODEL_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
# The hub's names (its page "Licenses"); its validation refuses a card with another.
_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
"""


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """Upload of the exported model to the hub at HF_ENDPOINT. The token belongs in the environment: HF_TOKEN."""

    push: bool = setting(False, "upload the model when it is exported", resume="free")
    model_id: str | None = setting(None, "owner/name of the repository; it is made if need be", resume="free")
    private: bool = setting(True, "a repository that is made is private", resume="free")
    revision: str | None = setting(None, "branch; it is made if need be", resume="free")
    tags: tuple[str, ...] | None = setting(None, "tags of the model's card", resume="free")
    license: str | None = setting(None, "licence of the model, by the hub's names, such as apache-2.0", resume="free")
    license_name: str | None = setting(None, "with licence other: its name", resume="free")
    license_link: str | None = setting(None, "with licence other: its address, or a file", resume="free")
    language: tuple[str, ...] | None = setting(None, "languages of the model, such as en de", resume="free")

    def card_fields(self) -> dict[str, Any]:
        """Fields of the hub's metadata, by its names; those that are asked for."""
        fields = {name: getattr(self, name) for name in ("license", "license_name", "license_link", "language")}
        return {name: list(one) if isinstance(one, tuple) else one for name, one in fields.items() if one is not None}


def hub(config: Any, world_size: int) -> Iterator[str]:
    """An upload to nowhere."""
    model_id = config.hub.model_id
    if config.hub.push and not model_id:
        yield "--hub.push needs a repository: add --hub.model_id owner/name."
    yield from card_problems(config.hub.card_fields())
    if model_id and not _MODEL_ID.fullmatch(model_id):
        yield f"--hub.model_id {model_id} must be owner/name, of letters, digits, '-', '_' and '.'."


def card_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    """What the hub would refuse in a card's metadata."""
    license_ = fields.get("license")
    if license_ is not None and license_ not in _LICENSES.split():
        near = difflib.get_close_matches(str(license_).lower(), _LICENSES.split(), n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        yield (
            f"--hub.license {license_} is none of the hub's names. {meant}For one that it does not list: other, with "
            "--hub.license_name and --hub.license_link."
        )
    for name in ("license_name", "license_link"):
        if fields.get(name) is not None and license_ != "other":
            yield f"--hub.{name} is read by the hub with --hub.license other alone: add it, or leave this out."
    if license_ == "other" and fields.get("license_name") is None:
        yield "--hub.license other needs a name: add --hub.license_name, such as my-licence-1.0."
    for language in fields.get("language") or ():
        if not _LANGUAGE.fullmatch(language):
            yield f"--hub.language {language} is no code of a language: two or three letters, such as en."


@dataclasses.dataclass(frozen=True)
class ExportedConfig:
    """The model."""

    output_dir: Place = setting("./ckpt", "folder of the exported model", resume="free")


def _needed(config: PushConfig, world_size: int) -> Iterator[str]:
    if not config.hub.model_id:
        yield "--hub.model_id is missing: give owner/name of the repository."
    if config.hub.card_fields() or config.hub.tags:
        yield (
            "--hub.license, --hub.language and --hub.tags are of the card that a training writes; a push uploads the "
            f"card as it is: say it in {config.ckpt.output_dir}/README.md."
        )


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
