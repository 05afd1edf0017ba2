"""Where settings come from: words of a command line, and configuration files. Names and values as given."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from openrlhf.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FLAG = "config"
_FLAG = re.compile(r"--?[a-zA-Z]")


@dataclasses.dataclass(frozen=True)
class Given:
    """One name with its value, as the user wrote it.

    A flag without a value has True, with several a list. A word that belongs to no flag has the name ''.
    """

    name: str
    value: Any
    where: str


def read_argv(argv: Sequence[str]) -> tuple[list[Given], list[str]]:
    """Command line → what is given, and the problems of its files. Of a name given twice the later holds.

    Configuration files come first, wherever `@ run.toml`, `@run.toml` or `--config run.toml` was written.
    """
    flags = list(_read_flags(argv))
    from_files: list[Given] = []
    problems: list[str] = []
    for flag in flags:
        if flag.name != CONFIG_FLAG:
            continue
        try:
            from_files += read_config_file(flag.value)
        except UserError as error:
            problems += error.problems
    return from_files + [flag for flag in flags if flag.name != CONFIG_FLAG], problems


def read_config_file(path: Any) -> list[Given]:
    """TOML or YAML file, names nested or dotted → what it gives.

    Raises:
        UserError: the file is missing, of another type, broken, or holds no names.
    """
    if not isinstance(path, str):
        raise UserError("--config needs one file: --config run.toml or --config run.yaml.")
    file = Path(path).expanduser()
    content = _parse_file(file)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; it must give names with values, such as train.batch_size.")
    return [Given(name, value, f"{path}: {name}") for name, value in _flatten(content, "")]


def _read_flags(argv: Sequence[str]) -> Iterator[Given]:
    words = list(argv)
    while words:
        word = words.pop(0)
        if word.startswith("@"):
            yield Given(CONFIG_FLAG, word[1:] or (words.pop(0) if words else None), "@")
        elif _FLAG.match(word):
            name, _, first = word.partition("=")
            values = ([first] if "=" in word else []) + _take_values(words)
            value = values if len(values) > 1 else values[0] if values else True
            yield Given(name.lstrip("-").replace("-", "_"), value, name)
        else:
            yield Given("", word, "")


def _take_values(words: list[str]) -> list[str]:
    """Takes the words up to the next flag or file off the list. `-1` is a value."""
    values = []
    while words and not (_FLAG.match(words[0]) or words[0].startswith("@")):
        values.append(words.pop(0))
    return values


def _parse_file(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The configuration file {file} cannot be read: {error}.") from None
    try:
        if file.suffix == ".toml":
            return tomllib.loads(text)
        if file.suffix in (".yaml", ".yml"):
            return yaml.safe_load(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The configuration file {file} is broken: {error}") from None
    except yaml.YAMLError as error:  # its own text shows the line, in which a key may stand
        mark, reason = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "it is no YAML"
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UserError(f"The configuration file {file} is broken: {reason}{place}") from None
    raise UserError(f"The configuration file {file} is of no known type; its name must end in .toml, .yaml or .yml.")


def _flatten(content: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, name + ".")
        else:
            yield name, value
