"""How a root of settings is declared and read: a frozen dataclass of groups as one flat table, dotted name → setting.

Nothing here knows a particular command. A root names its settings, its checks and its other names; see `Root`.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from openrlhf.config.disk import HIDDEN, begins_as_address, parts_of, without_secrets
from openrlhf.config.synonyms import Synonyms, resolve

AUTO = "auto"  # the value of a setting that is left to the run
Resume = Literal["must_match", "kept", "taken", "free"]
Check = Callable[[Any, int], Iterator[str]]
Notice = Callable[[Any], Iterator[str]]


def setting(default: Any, help: str, *, resume: Resume, secret: bool = False, takes_auto: bool = False) -> Any:
    """A field of a group, declared once.

    Args:
        resume: the rule for a run that goes on from a checkpoint with another value.
            `must_match`: it is another run, and refused, unless --ckpt.allow_mismatch is given.
            `kept`: the checkpoint's value stays, and the user is told.
            `taken`: the new value holds from here on, and the user is told.
            `free`: the new value holds and nothing is said, since the training computes the same with any value
            (paths, logging, layout), or since a fact of the run covers it (the data's fingerprint, the horizon).
        secret: left out of every file, namespace, message and repr.
        takes_auto: a command line may leave it to the run, by `auto`. A script gives a value, or has the default.
    """
    metadata = {"help": help, "resume": resume, "secret": secret, "takes_auto": takes_auto}
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


must_match = functools.partial(setting, resume="must_match")
kept = functools.partial(setting, resume="kept")
taken = functools.partial(setting, resume="taken")
free = functools.partial(setting, resume="free")
auto = functools.partial(setting, resume="free", takes_auto=True)


@dataclasses.dataclass(frozen=True)
class Command:
    """Facts of a root's command beside its settings.

    Attributes:
        title: first line of `--help`.
        usage: the command without its flags.
        synonyms: other names; those of settings that the root lacks are left out.
        checks: each takes the configuration and the number of ranks, and yields problems as sentences.
        notices: each takes the configuration and yields sentences that the user is told once at the start.
        set_by_itself: names of settings that the command gives its parts: `--help` leaves them out.
    """

    title: str = ""
    usage: str = ""
    synonyms: Synonyms = dataclasses.field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    notices: tuple[Notice, ...] = ()
    set_by_itself: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Root:
    """Base of a command's settings. A subclass declares its fields: groups, and settings of the top level.

    A group is a frozen dataclass whose fields are groups or are made by `setting`. The docstring of a root or a group
    is its headline in `--help`.
    """

    command: ClassVar[Command] = Command()


RootT = typing.TypeVar("RootT", bound=Root)
_F = typing.TypeVar("_F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the table; `name` is the flag without its two dashes, as in ds.lora.rank."""

    name: str
    kind: Any
    default: Any
    help: str
    resume: Resume
    secret: bool
    takes_auto: bool


def _cached(function: _F) -> _F:
    """functools.cache with the function's own signature: mypy takes a dataclass's type for not hashable."""
    return typing.cast(_F, functools.cache(function))


@_cached
def settings(root: type[Root]) -> Mapping[str, Setting]:
    """All settings by dotted name, group by group."""
    defaults = root()
    rows = (
        Setting(prefix + field.name, kind, _value(defaults, prefix + field.name), **field.metadata)
        for prefix, group in _walk(root, "")
        for field, kind in _fields(group)
        if not dataclasses.is_dataclass(kind)
    )
    return types.MappingProxyType({row.name: row for row in rows})


@_cached
def groups(root: type[Root]) -> Mapping[str, str]:
    """Dotted prefix of each group ('' for the top) → its headline."""
    return types.MappingProxyType({prefix.rstrip("."): group.__doc__ or "" for prefix, group in _walk(root, "")})


@_cached
def synonyms(root: type[Root]) -> Synonyms:
    """The other names of the settings that the root has."""
    table, known = root.command.synonyms, settings(root).keys()
    return {old: table[old] for old in table if {name for name, _ in resolve(table, old, None)} <= known}


def values_of(config: Root) -> dict[str, Any]:
    """The configuration as a flat dict by dotted name, secrets included."""
    return {name: _value(config, name) for name in settings(type(config))}


def shown_values(config: Root) -> dict[str, Any]:
    """The configuration as a flat dict by dotted name, without the secrets: for files, logs and trackers."""
    known = settings(type(config))
    return {name: _shown(name, value) for name, value in values_of(config).items() if not known[name].secret}


def _shown(name: str, value: Any) -> Any:
    """An address in a template stays: no secret stands there, and a template must not change."""
    if not isinstance(value, str) or name.endswith("_template"):
        return value
    told = without_secrets(value)
    return told if HIDDEN in told or any(map(begins_as_address, parts_of(value))) else value


def left_open(config: Root) -> frozenset[str]:
    """The names of the settings that are `auto`."""
    table = settings(type(config))
    return frozenset(name for name, value in values_of(config).items() if table[name].takes_auto and value == AUTO)


def without_auto(config: RootT) -> RootT:
    """The configuration where nothing is chosen: what is `auto` has its default."""
    return with_values(config, {name: settings(type(config))[name].default for name in left_open(config)})


def build(root: type[RootT], values: Mapping[str, Any]) -> RootT:
    """Flat values by dotted name → configuration; a setting that is not among them has its default."""
    return with_values(root(), values)


def with_values(group: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A configuration, or the group of that prefix, with those of the flat `values` that are its own."""
    given = {}
    for field, kind in _fields(type(group)):
        name = prefix + field.name
        if dataclasses.is_dataclass(kind):
            given[field.name] = with_values(getattr(group, field.name), values, f"{name}.")
        elif name in values:
            given[field.name] = values[name]
    return dataclasses.replace(group, **given)


def _value(config: Any, name: str) -> Any:
    """At a dotted name."""
    return functools.reduce(getattr, name.split("."), config)


def _walk(group: type, prefix: str) -> Iterator[tuple[str, type]]:
    """(prefix of its settings' names, the group) for a group and those within it."""
    yield prefix, group
    for field, kind in _fields(group):
        if dataclasses.is_dataclass(kind):
            yield from _walk(typing.cast(type, kind), f"{prefix}{field.name}.")


def _fields(group: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a group, each with its type."""
    kinds = typing.get_type_hints(group, include_extras=True)
    return ((field, kinds[field.name]) for field in dataclasses.fields(group))
