"""The settings as one flat table, dotted name → setting, and the way back to the dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from openrlhf.config.settings import SFTConfig


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the table; `name` is the flag without its two dashes, as in ds.lora.rank."""

    name: str
    kind: Any
    default: Any
    help: str
    secret: bool


@functools.cache
def settings() -> Mapping[str, Setting]:
    """All settings by dotted name, in the order of the dataclasses."""
    return types.MappingProxyType({row.name: row for row in _walk(SFTConfig, "")})


@functools.cache
def groups() -> Mapping[str, str]:
    """Dotted prefix of each group ('' for the top) → what it is about."""
    return types.MappingProxyType(dict(_walk_groups(SFTConfig, "")))


def values_of(config: SFTConfig) -> dict[str, Any]:
    """The configuration as a flat dict by dotted name, secrets included."""
    return {name: functools.reduce(getattr, name.split("."), config) for name in settings()}


def values_to_show(config: SFTConfig) -> dict[str, Any]:
    """The same without the secrets."""
    return {name: value for name, value in values_of(config).items() if not settings()[name].secret}


def build(values: Mapping[str, Any]) -> SFTConfig:
    """Flat values by dotted name → configuration; what is not among them has its default."""
    return _build(SFTConfig, values, "")


def _walk(group: type, prefix: str) -> Iterator[Setting]:
    kinds = typing.get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        name, kind = prefix + field.name, kinds[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _walk(typing.cast(type, kind), name + ".")
        else:
            yield Setting(name, kind, field.default, field.metadata["help"], field.metadata["secret"])


def _walk_groups(group: type, prefix: str) -> Iterator[tuple[str, str]]:
    yield prefix.rstrip("."), group.__doc__ or ""
    for name, kind in typing.get_type_hints(group).items():
        if dataclasses.is_dataclass(kind):
            yield from _walk_groups(typing.cast(type, kind), f"{prefix}{name}.")


def _build(group: type, values: Mapping[str, Any], prefix: str) -> Any:
    given = {}
    for name, kind in typing.get_type_hints(group).items():
        if dataclasses.is_dataclass(kind):
            given[name] = _build(typing.cast(type, kind), values, f"{prefix}{name}.")
        elif prefix + name in values:
            given[name] = values[prefix + name]
    return group(**given)
