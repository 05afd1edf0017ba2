"""Command line → SFTConfig, with all problems of the configuration in one error."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from openrlhf.config.checks import check_config
from openrlhf.config.help import print_help
from openrlhf.config.kinds import describe, read_value
from openrlhf.config.schema import Setting, build, groups, settings
from openrlhf.config.settings import SFTConfig
from openrlhf.config.sources import CONFIG_FLAG, Given, read_argv
from openrlhf.config.synonyms import RENAMED, SWITCHES, resolve
from openrlhf.errors import UserError


@dataclasses.dataclass
class _Reading:
    """What has been read so far; `doubtful` are settings that the user meant to give, and that are wrong."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    doubtful: set[str] = dataclasses.field(default_factory=set)


def parse_sft_config(argv: Sequence[str], trains: bool = True) -> SFTConfig:
    """Words of the command line, without the program's name → configuration, checked for this many ranks.

    `--help` prints the table of all settings and ends the program with code 0.

    Args:
        trains: False for a command that neither loads weights nor writes a model.

    Raises:
        UserError: with every problem of flags, files, values and their combination.
    """
    if any(word in ("-h", "--help") for word in argv):
        print_help()
        raise SystemExit(0)
    given, file_problems = read_argv(argv)
    reading = read_given(given)
    config = build(reading.values)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    consequences = [
        problem for problem in check_config(config, world_size, trains) if not _names_any(problem, reading.doubtful)
    ]
    if problems := file_problems + reading.problems + ([] if file_problems else consequences):
        raise UserError(*problems)
    _warn_about_secrets(reading.values)
    return config


def read_given(given: Sequence[Given]) -> _Reading:
    """Names and values as given → values by dotted name, problems in words. The last of a name wins."""
    reading = _Reading()
    table = settings()
    for item in given:
        for name, value in resolve(item.name, item.value):
            if name in table:
                _read_one(reading, table[name], value, item.where)
            elif not (name in groups() and value is None):  # a group that a YAML file leaves empty
                _report_unknown(reading, item)
    return reading


def _read_one(reading: _Reading, setting: Setting, value: Any, where: str) -> None:
    try:
        reading.values[setting.name] = read_value(setting.kind, value)
        return
    except ValueError as error:
        reason = f"must be {describe(setting.kind)}." if setting.secret else str(error)
    reading.problems.append(f"{where} {reason}")
    reading.doubtful.add(setting.name)


def _report_unknown(reading: _Reading, item: Given) -> None:
    if not item.name:
        reading.problems.append(f"{item.value!r} belongs to no flag. Quote a value with spaces; see --help.")
        return
    if item.name in groups():
        reading.problems.append(f"{item.where} is a group of settings, such as {_example_of(item.name)}.")
        return
    near = nearest_name(item.name)
    dashes = "--" if item.where.startswith("-") else ""
    remedy = f" Did you mean {dashes}{near}?" if near else " See --help for all."
    reading.problems.append(f"{item.where} is unknown.{remedy}")
    reading.doubtful.update(name for name, _ in resolve(near, None))


def nearest_name(name: str) -> str:
    """The known name nearest to a misspelt one; '' where none is near."""
    known = [*settings(), *RENAMED, *SWITCHES, CONFIG_FLAG]
    same_ending = [full for full in settings() if full.rpartition(".")[2] == name.rpartition(".")[2]]
    near = difflib.get_close_matches(name, same_ending, n=1, cutoff=0.3) or difflib.get_close_matches(name, known, n=1)
    return near[0] if near else ""


def _example_of(group: str) -> str:
    return next(name for name in settings() if name.startswith(group + "."))


def _names_any(problem: str, names: set[str]) -> bool:
    return any(re.search(rf"--{re.escape(name)}(?![\w.]*\w)", problem) for name in names)


def _warn_about_secrets(values: dict[str, Any]) -> None:
    if values.get("logger.wandb.key") and os.environ.get("RANK", "0") == "0":
        print(
            "warning: a key in the command line or a file can be read by others; set WANDB_API_KEY in the "
            "environment in place of --logger.wandb.key. The key is not written to any log or file.",
            file=sys.stderr,
        )
