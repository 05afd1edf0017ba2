"""Where settings come from: words of a command line, and configuration files. Names and values as given."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from openrlhf.config.disk import SECRET_NAME, local_path, without_secrets
from openrlhf.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FLAG = "config"
MAX_PARTS, MAX_DEPTH = 10_000, 20  # of a configuration file; the worst is read in 10 s
MAX_YAML_BYTES = 1 << 17  # has room for the run_config.yaml of a run whose lists are long
MAX_TOML_BYTES = 1 << 15  # Python reads a name of many dots in the square of its length
_OTHER_NUMBER = re.compile(r":|^[-+]?0[0-9_]")  # than it seems to be
_FLAG = re.compile(r"--?[a-zA-Z]")
_FLAG_BEHIND_A_SECRET = re.compile(r"--[a-zA-Z]")  # a key may begin with a dash


@dataclasses.dataclass(frozen=True)
class Given:
    """One name with its value, as the user wrote it.

    A flag without a value has True, with several a list. A word that belongs to no flag has the name ''.
    `file` is the configuration file that gives it; '' for none.
    """

    name: str
    value: Any
    where: str
    file: str = ""


def secrets_in(words: Sequence[str]) -> Iterator[str]:
    """The values of flags that sound like secrets."""
    left = list(words)
    while left:
        flag, _, value = left.pop(0).partition("=")
        if _is_secret(flag):
            yield from filter(None, [value, *_take_values(left, flag)])


def _is_secret(flag: str) -> bool:
    return flag.startswith("-") and bool(SECRET_NAME.search(flag))


def with_secrets_hidden(words: Sequence[str]) -> list[str]:
    """A command line to be shown: without the values of flags that sound like secrets, and those in addresses."""
    secrets = set(secrets_in(words))
    return ["[hidden]" if {word, word.partition("=")[2]} & secrets else without_secrets(word) for word in words]


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
    given = [Given(name, value, f"{path}: {name}", path) for name, value in _flatten(settings_of_file(path), "")]
    if twice := _twice(one.name for one in given):
        raise UserError(f"{path} gives {', '.join(twice[:MAX_DEPTH])} twice: leave one of them out.")
    return given


def settings_of_file(path: Any) -> dict[str, Any]:
    """TOML or YAML file → its values as they stand there. Raises UserError as `read_config_file`."""
    if not isinstance(path, str):
        raise UserError("--config needs one file: --config run.toml or --config run.yaml.")
    content = _parse_file(local_path(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; it must give names with values, such as train.batch_size.")
    return content


def _read_flags(argv: Sequence[str]) -> Iterator[Given]:
    words = list(argv)
    while words:
        word = words.pop(0)
        if word.startswith("@"):
            yield Given(CONFIG_FLAG, word[1:] or (words.pop(0) if words else None), "@")
        elif _FLAG.match(word):
            name, _, first = word.partition("=")
            values = ([first] if "=" in word else []) + _take_values(words, name)
            value = values if len(values) > 1 else values[0] if values else True
            yield Given(name.lstrip("-").replace("-", "_"), value, name)
        else:
            yield Given("", word, "")


def _take_values(words: list[str], flag: str) -> list[str]:
    """Takes the words up to the next flag or file off the list. `-1` is a value."""
    values, next_flag = [], _FLAG_BEHIND_A_SECRET if _is_secret(flag) else _FLAG
    while words and not (next_flag.match(words[0]) or words[0].startswith("@")):
        values.append(words.pop(0))
    return values


def _parse_file(file: Path) -> Any:
    text = _text_of(file)
    if file.suffix not in (".toml", ".yaml", ".yml"):
        raise UserError(
            f"The configuration file {file} is of no known type; its name must end in .toml, .yaml or .yml."
        )
    try:
        content = tomllib.loads(text) if file.suffix == ".toml" else yaml.load(text, _StrictLoader)
        _check_size(content)
    except yaml.YAMLError as error:  # its own text shows the line, in which a key may stand
        mark, reason = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "it is no YAML"
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UserError(f"The configuration file {file} is broken: {reason}{place}") from None
    except (ValueError, RecursionError, TypeError, OverflowError) as error:  # numbers, dates, depth
        raise UserError(f"The configuration file {file} is broken: {error}") from None
    return content


def _text_of(file: Path) -> str:
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no plain file")
        most = MAX_TOML_BYTES if file.suffix == ".toml" else MAX_YAML_BYTES
        if file.stat().st_size > most:
            raise ValueError(f"it has more than {most:,} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a name that no file can have, text that is not UTF-8
        raise UserError(f"The configuration file {file} cannot be read: {error}.") from None


def _check_size(content: Any) -> None:
    """Raises ValueError. An alias of YAML stands for all that it names: few lines could mean more than memory holds."""
    parts, num_parts = [(content, 0)], 0
    while parts:
        part, depth = parts.pop()
        num_parts += 1
        if num_parts > MAX_PARTS or depth > MAX_DEPTH:
            raise ValueError(
                f"it holds more than {MAX_PARTS:,} values, or lists and groups more than {MAX_DEPTH} deep, its aliases "
                "written out"
            )
        parts += [(one, depth + 1) for one in _inner(part)]


def _inner(part: Any) -> Iterable[Any]:
    if isinstance(part, yaml.MappingNode):
        return [one for pair in part.value for one in pair]
    if isinstance(part, yaml.SequenceNode):
        return part.value
    return part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def _twice(names: Iterable[Any]) -> list[Any]:
    return [name for name, times in Counter(names).items() if times > 1]


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a group (the later would hold), and a number that means another one."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        _check_size(node)  # before values are made of it: `<<` would write the aliases out
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := _twice(map(str, keys)):
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_plain_int(self, node: Any) -> int:
        return self.construct_yaml_int(_as_it_reads(node))

    def construct_plain_float(self, node: Any) -> float:
        return self.construct_yaml_float(_as_it_reads(node))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_plain_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_plain_float)


def _as_it_reads(number: Any) -> Any:
    """The node of a number. Its text is not shown: it may be a key."""
    if _OTHER_NUMBER.search(number.value):
        reason = (
            "a number with a colon counts by sixty in YAML (1:30 is 90), and one that begins with 0 by eight (010 is "
            "8): write the number that is meant, or quote it"
        )
        raise yaml.constructor.ConstructorError(None, None, reason, number.start_mark)
    return number


def _flatten(content: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, name + ".")
        else:
            yield name, value
