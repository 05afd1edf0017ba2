"""Command line → configuration, with all its problems in one error."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from openrlhf.config.checks import check_config, notices_of
from openrlhf.config.compat import is_theirs, take, why_not_here, why_without_effect
from openrlhf.config.help import print_help
from openrlhf.config.kinds import describe, read_value
from openrlhf.config.recipes import is_recipe, read_recipe
from openrlhf.config.schema import AUTO, Root, RootT, Setting, build, groups, settings, synonyms
from openrlhf.config.sources import CONFIG_FLAG, Given, read_argv
from openrlhf.config.synonyms import resolve
from openrlhf.errors import UserError
from openrlhf.versions import untried_versions

_OFF = (False, "false", "False", "0", 0)
_IGNORED = ("local_rank",)  # a launcher adds it, and the environment says it too


@dataclasses.dataclass
class _Reading:
    """Values by dotted name, and problems in words; `doubtful` are settings that the user meant to give, wrongly."""

    root: type[Root]
    takes_auto: bool = False
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    doubtful: set[str] = dataclasses.field(default_factory=set)
    notes: list[str] = dataclasses.field(default_factory=list)  # of names that mean another thing, or nothing, here


def parse_config(root: type[RootT], argv: Sequence[str]) -> RootT:
    """Words of the command line, without the program's name → configuration, checked for this many ranks.

    `--help` prints the table of all settings and ends the program with code 0. Rank 0 prints the notices to stderr.

    Raises:
        UserError: with every problem of flags, files, values and their combination.
    """
    if any(word in ("-h", "--help") for word in argv):
        print_help(root)
        raise SystemExit(0)
    given, file_problems = read_argv(argv)
    world_size = _num_ranks()
    ranks = [one.value for one in given if one.name == "ranks" and "ranks" in settings(root)]
    recipe = read_recipe(root, given, int(ranks[-1]) if ranks and str(ranks[-1]).isdigit() else world_size)
    reading = read_given(root, recipe.given, takes_auto=True)
    config = build(root, _left_to_the_run(reading) | reading.values)
    consequences = [
        problem for problem in check_config(config, world_size) if not _names_any(problem, reading.doubtful)
    ]
    if problems := file_problems + recipe.problems + reading.problems + ([] if file_problems else consequences):
        raise UserError(*problems)
    if os.environ.get("RANK", "0") == "0":
        recipe.tell()
        for sentence in [*reading.notes, *notices_of(config), *untried_versions()]:
            print(sentence, file=sys.stderr)
    return config


def _num_ranks() -> int:
    """Of this run, as its launcher says. Raises UserError where the environment holds no number."""
    said = os.environ.get("WORLD_SIZE", "1").strip()
    if not re.fullmatch("0*[1-9][0-9]{0,8}", said):
        raise UserError(
            f"WORLD_SIZE is {said[:60]!r} in the environment, where the number of ranks belongs: unset it, or start by "
            "torchrun, which sets it."
        )
    return int(said)


def nearest_root(roots: Sequence[type[RootT]], argv: Sequence[str]) -> type[RootT]:
    """Of the roots the one that knows most of the names on the command line and in its files; the first of several.

    A recipe is of supervised fine-tuning, which is the first.
    """
    given, _ = read_argv(argv)
    if all(is_recipe(root, given) for root in roots):
        return roots[0]

    def num_known(root: type[Root]) -> int:
        known, other_names = settings(root), synonyms(root)
        return sum(all(name in known for name, _ in resolve(other_names, one.name, one.value)) for one in given)

    return max(roots, key=num_known)


def read_given(root: type[Root], given: Sequence[Given], takes_auto: bool = False) -> _Reading:
    """Names and values as given → values by dotted name, problems in words. The last of a name wins.

    Names are taken as OpenRLHF takes them where they are its own, or `compat` is among them: abbreviated, too.

    Args: takes_auto: settings may be left to the run, as on a command line.
    """
    reading = _Reading(root, takes_auto)
    theirs = is_theirs([item.name for item in given])
    may_abbreviate = theirs or "compat" in [item.name for item in given]
    table, other_names = settings(root), synonyms(root)
    named: dict[tuple[str, str], str] = {}
    for item in given:
        if item.name in _IGNORED:
            continue
        whole = _whole_name(root, item.name) if may_abbreviate else item.name
        for name, value in resolve(other_names, whole, item.value):
            if name in table:
                if item.file and (other := named.setdefault((item.file, name), item.name)) != item.name:
                    reading.problems.append(f"{item.where} is {other} by another name: leave one of the two out.")
                _read_one(reading, table[name], value, item.where)
            elif (why := why_without_effect(root, name)) is not None:
                reading.notes += [] if value in _OFF else [f"{item.where} changes nothing here: {why}."]
            elif not (name in groups(root) and value is None):  # a group that a YAML file leaves empty
                _report_unknown(reading, item)
    reading.notes += take(root, reading.values, theirs)
    return reading


def _left_to_the_run(reading: _Reading) -> dict[str, Any]:
    """Settings that are auto where nothing is said; none beside a number of samples, which says the layout."""
    if reading.values.get("train.micro_batch_size", AUTO) != AUTO:
        return {}
    return {name: AUTO for name, setting in settings(reading.root).items() if setting.takes_auto}


def _whole_name(root: type[Root], name: str) -> str:
    """The one name that begins so, as argparse reads an abbreviation; the name itself where there is none, or several.

    Several names of one setting are one.
    """
    known = [*settings(root), *synonyms(root)]
    begun = {full: str(resolve(synonyms(root), full, None)) for full in known if name and full.startswith(name)}
    return next(iter(begun)) if name not in known and len(set(begun.values())) == 1 else name


def _read_one(reading: _Reading, setting: Setting, value: Any, where: str) -> None:
    takes_auto = reading.takes_auto and setting.takes_auto
    try:
        reading.values[setting.name] = AUTO if takes_auto and value == AUTO else read_value(setting.kind, value)
        return
    except ValueError as error:
        reason = f"must be {describe(setting.kind)}." if setting.secret else str(error)
        reason += " Or give auto." if takes_auto else ""
    reading.problems.append(f"{where} {reason}")
    reading.doubtful.add(setting.name)


def _report_unknown(reading: _Reading, item: Given) -> None:
    if not item.name:
        reading.problems.append(f"{str(item.value)[:200]!r} belongs to no flag. Quote a value with spaces; see --help.")
        return
    if item.name in groups(reading.root):
        example = next(name for name in settings(reading.root) if name.startswith(item.name + "."))
        reading.problems.append(f"{item.where} is a group of settings, such as {example}.")
        return
    if why := why_not_here(reading.root, item.name):
        if item.value is not None:  # as a run_config.yaml of an earlier version has it, which asks for nothing
            reading.problems.append(f"{item.where} is not here: {why}.")
        return
    near = _nearest_name(reading.root, item.name)
    dashes = "--" if item.where.startswith("-") else ""
    remedy = f" Did you mean {dashes}{near}?" if near else " See --help for all."
    reading.problems.append(f"{item.where} is unknown.{remedy}")
    reading.doubtful.update(name for name, _ in resolve(synonyms(reading.root), near, None))


def _nearest_name(root: type[Root], name: str) -> str:
    """The known name nearest to a misspelt one, of its group before all others; '' where none is near."""
    group, _, last = name.rpartition(".")
    of_group = {full.rpartition(".")[2]: full for full in settings(root) if full.rpartition(".")[0] == group}
    if near := difflib.get_close_matches(last, of_group, n=1, cutoff=0.8):
        return of_group[near[0]]
    known = [*settings(root), *synonyms(root), CONFIG_FLAG]
    same_ending = [full for full in settings(root) if full.rpartition(".")[2] == last]
    if same_ending and group in groups(root):  # by letters alone train.lr would be nearer to muon.lr than to adam.lr
        return same_ending[0]
    near = difflib.get_close_matches(name, same_ending, n=1, cutoff=0.3) or difflib.get_close_matches(name, known, n=1)
    return near[0] if near else ""


def _names_any(problem: str, names: set[str]) -> bool:
    return any(re.search(rf"--{re.escape(name)}(?![\w.]*\w)", problem) for name in names)
