"""The one place that translates between the typed configuration and the contract's `strategy.args`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from openrlhf.config.parse import read_given
from openrlhf.config.schema import build, settings, values_of
from openrlhf.config.settings import SFTConfig
from openrlhf.config.sources import Given
from openrlhf.config.synonyms import RENAMED, SWITCHES
from openrlhf.errors import UserError

_ABSENT = object()


def as_namespace(config: SFTConfig) -> argparse.Namespace:
    """Config → namespace with nested names (`args.data.input_key`) and flat old ones (`args.input_key`).

    Secrets are None there. Changing one of the two names does not change the other.
    """
    values = values_of(config)
    args = argparse.Namespace()
    for row in settings().values():
        _put(args, row.name, None if row.secret else values[row.name])
    for old, name in RENAMED.items():
        if "." not in old:
            setattr(args, old, values[name])
    for old, (name, on, _) in SWITCHES.items():
        setattr(args, old, values[name] == on)
    args.use_wandb = config.logger.wandb.enable
    return args


def from_namespace(args: Any) -> SFTConfig:
    """Any object with some of the names, nested or flat → configuration; what is missing has its default.

    None counts as missing. A nested name wins over its flat one. No file is looked at.

    Raises:
        UserError: with every value that cannot be.
    """
    reading = read_given(list(_given_by(args)))
    if reading.problems:
        raise UserError(*reading.problems)
    return build(reading.values)


def _given_by(args: Any) -> Iterator[Given]:
    """What wins comes last."""
    for name in (*SWITCHES, "use_wandb", *RENAMED, *settings()):
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
