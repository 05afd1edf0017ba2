"""The one place that translates between the typed configuration and the contract's `strategy.args`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from openrlhf.config.parse import read_given
from openrlhf.config.schema import Root, RootT, build, settings, shown_values, synonyms
from openrlhf.config.sources import Given
from openrlhf.errors import UserError

_ABSENT = object()


def as_namespace(config: Root) -> argparse.Namespace:
    """Config → namespace with nested names (`args.data.input_key`) and flat old ones (`args.input_key`).

    Secrets are None there. Changing one of the two names does not change the other.
    """
    root, shown = type(config), shown_values(config)
    args = argparse.Namespace()
    for name in settings(root):
        _put(args, name, shown.get(name))
    other = synonyms(root)
    flat = {old: shown.get(name) for old, name in other.renamed.items() if "." not in old}
    flat |= {old: shown[name] == on for old, (name, on, _) in other.switches.items()}
    flat |= {old: shown[name] for old, (name, _) in other.keyed.items()}
    for old, value in flat.items():
        setattr(args, old, value)
    return args


def from_namespace(root: type[RootT], args: Any) -> RootT:
    """Any object with some of the names, nested or flat → configuration; what is missing has its default.

    None counts as missing. A nested name wins over its flat one. No file is looked at.

    Raises:
        UserError: with every value that cannot be.
    """
    reading = read_given(root, list(_given_by(root, args)))
    if reading.problems:
        raise UserError(*reading.problems)
    return build(root, reading.values)


def _given_by(root: type[Root], args: Any) -> Iterator[Given]:
    """The name that wins comes last."""
    for name in (*synonyms(root), *settings(root)):
        value = _get(args, name)
        if value is not _ABSENT and value is not None:
            yield Given(name, value, f"args.{name}")


def _put(args: argparse.Namespace, name: str, value: Any) -> None:
    *groups, leaf = name.split(".")
    for group in groups:
        if not hasattr(args, group):
            setattr(args, group, argparse.Namespace())
        args = getattr(args, group)
    setattr(args, leaf, value)


def _get(args: Any, name: str) -> Any:
    """Attribute at the dotted name, or `_ABSENT`."""
    for part in name.split("."):
        if isinstance(args, str):  # a flat `args.data` has methods, but no settings
            return _ABSENT
        args = getattr(args, part, _ABSENT)
    return args
