"""The typed configuration in other forms: the contract's `strategy.args`, and a file that `@` reads back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from openrlhf.atomic_file import replace_file
from openrlhf.config.checks import notices_of
from openrlhf.config.parse import read_given
from openrlhf.config.schema import Root, RootT, build, settings, shown_values, synonyms
from openrlhf.config.sources import Given
from openrlhf.errors import UserError

FILE_NAME = "run_config.yaml"
_RUN = "# run "
_KEY, _ENABLE = "logger.wandb.key", "logger.wandb.enable"


def write_resolved(config: Root, path: str | Path, run_id: str | None = None) -> None:
    """Writes every setting but the secrets, in one atomic move; makes the folder if need be.

    Args: run_id: of the run, for `written_by`.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in shown_values(config).items()}
    # YAML, since TOML has no word for none.
    text = yaml.safe_dump(_nested(values), sort_keys=False, width=110)
    of_run = f"{_RUN}{run_id}\n" if run_id else ""
    replace_file(path, f"# Every setting of this run. Again: {config.command.usage} @ {FILE_NAME}\n{of_run}{text}")


def written_by(path: Path) -> str | None:
    """The id of the run that wrote this file of settings; None where none stands in it, or there is no file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.removeprefix(_RUN) for line in lines if line.startswith(_RUN)), None)


def as_namespace(config: Root) -> argparse.Namespace:
    """Config → namespace with nested names (`args.data.input_key`) and flat old ones (`args.input_key`).

    Secrets are None there. Changing one of the two names does not change the other.
    """
    root, shown = type(config), shown_values(config)
    args = _as_namespace(_nested({name: shown.get(name) for name in settings(root)}))
    for old, meant in synonyms(root).items():
        if not isinstance(meant, str):
            setattr(args, old, shown[meant.name] == meant.on)
        elif "." not in old:
            setattr(args, old, shown.get(meant))
    return args


def from_namespace(root: type[RootT], args: Any) -> RootT:
    """Any object or dict with some of the names, nested or flat → configuration; what is missing has its default.

    None counts as missing. A nested name wins over its flat one. No file is looked at.

    Raises:
        UserError: with every value that cannot be.
    """
    reading = _read(root, args)
    if reading.problems:
        raise UserError(*reading.problems)
    return build(root, reading.values)


def told_of_namespace(root: type[Root], args: Any) -> list[str]:
    """What a script's user is told of its arguments once: where they mean another thing here, or nothing."""
    reading = _read(root, args)
    return reading.notes + notices_of(build(root, reading.values))


def _read(root: type[Root], args: Any) -> Any:
    names = (*synonyms(root), *settings(root))  # the name that wins comes last
    given = [Given(name, value, f"args.{name}") for name in names if (value := _get(args, name)) is not None]
    if _get(args, _KEY) is not None and _get(args, _ENABLE) is None:  # how OpenRLHF's scripts ask for W&B
        given.append(Given(_ENABLE, True, f"args.{_KEY}"))
    return read_given(root, given)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted name → a dict of dicts."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *groups, leaf = name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = value
    return tree


def _as_namespace(tree: dict[str, Any]) -> argparse.Namespace:
    return argparse.Namespace(
        **{name: _as_namespace(value) if isinstance(value, dict) else value for name, value in tree.items()}
    )


def _get(args: Any, name: str) -> Any:
    """Attribute, or value of a dict, at the dotted name; None where there is none."""
    for part in name.split("."):
        if isinstance(args, str):  # a flat `args.data` has methods, but no settings
            return None
        args = args.get(part) if isinstance(args, Mapping) else getattr(args, part, None)
    return args
