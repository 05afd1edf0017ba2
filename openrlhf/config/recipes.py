"""Recipes of TRL, Open-R1 and verifiers among the files of `@`: their names become ours, and a table tells how."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from openrlhf.config.schema import Root, settings, synonyms
from openrlhf.config.settings import SFTConfig
from openrlhf.config.sources import Given
from openrlhf.config.trl_names import (
    RECIPE_NAMES,
    VERIFIERS_DEFAULTS,
    ModelNames,
    OpenR1Names,
    ScriptArgumentNames,
    SftNames,
    VerifiersNames,
    is_secret,
)
from openrlhf.config.trl_translation import HIDDEN, Translation, translate
from openrlhf.errors import UserError

_SFT = "sft."  # verifiers' group of TRL's names
_OF_VERIFIERS = {"model": "model_name_or_path", "dataset": "dataset_name"}


@dataclasses.dataclass
class Recipe:
    """What a command line with a recipe gives: our names, what is told of the translation, and what cannot be."""

    given: list[Given]
    translation: Translation | None = None
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)

    def tell(self) -> None:
        """Prints the table to standard error."""
        if self.translation is None:
            return
        table = Table(title="Names of TRL, and what became of them", title_justify="left", pad_edge=False)
        table.add_column("there", overflow="fold")
        table.add_column("here", overflow="fold")
        for there, here in self.translation.rows:
            table.add_row(there, here)
        if self.defaults:
            table.add_row("(defaults there)", ", ".join(f"{name} {value}" for name, value in self.defaults.items()))
        Console(file=sys.stderr, markup=False).print(table)  # what a user gives is no markup


def read_recipe(root: type[Root], given: Sequence[Given], world_size: int) -> Recipe:
    """The names of a recipe, where a file is one, in our own names; all else as it is given.

    A file is a recipe if it has a name that TRL, Open-R1 or verifiers know, and that is none of ours. Then all its
    names mean what they mean there, and flags beside it may have such names too.
    """
    if not is_recipe(root, given):
        return Recipe(list(given))
    if not issubclass(root, SFTConfig):
        raise UserError(
            "a file has names of TRL's, whose recipes are read for supervised fine-tuning alone: for "
            f"{root.command.usage} give the names that its --help lists."
        )
    is_verifiers = any(one.name.startswith(_SFT) for one in given)
    ours = {*settings(root), *synonyms(root)}
    theirs: dict[str, Given] = {}
    rest, problems = [], []
    for one in given:
        name = _name_there(one, is_verifiers)
        if name.partition(".")[0] in RECIPE_NAMES:
            _put(theirs, dataclasses.replace(one, name=name))
        elif one.name in ours or one.name.startswith("-") or not _is_in_file(one):
            rest.append(one)
        else:
            problems.append(_unknown(one, ours))
    values, wrong = _read_values(theirs)
    folder = {"output_dir": f"outputs/{values.get('run_name', 'sft')}"}
    defaults = VERIFIERS_DEFAULTS | folder if is_verifiers else {}
    translation = translate(defaults | values, values.keys(), _num_data_ranks(rest, world_size))
    return _as_ours(root, translation, theirs, rest, problems + wrong + _both_losses(values))


def is_recipe(root: type[Root], given: Sequence[Given]) -> bool:
    """Whether a file has a name that is TRL's, Open-R1's or verifiers', and none of the root's own."""
    ours = {*settings(root), *synonyms(root)}
    return any(one.name.startswith(_SFT) or _is_theirs(one, ours) for one in given)


def _is_in_file(one: Given) -> bool:
    return not one.where.startswith("-") and one.name != ""


def _is_theirs(one: Given, ours: Collection[str]) -> bool:
    return _is_in_file(one) and one.name.partition(".")[0] in RECIPE_NAMES and one.name.partition(".")[0] not in ours


def _name_there(one: Given, is_verifiers: bool) -> str:
    if is_verifiers:
        return _OF_VERIFIERS.get(one.name, one.name.removeprefix(_SFT))
    return one.name


def _put(theirs: dict[str, Given], one: Given) -> None:
    """The later holds; the parts of a group (`deepspeed.zero_optimization.stage`) come together again."""
    name, *parts = one.name.split(".")
    earlier = theirs[name].value if name in theirs else None
    theirs[name] = Given(name, _with_part(earlier, parts, one.value), one.where)


def _with_part(group: Any, parts: Sequence[str], value: Any) -> Any:
    """The group with the value at the place that the names lead to; the value itself where there are no names."""
    if not parts:
        return value
    group = group if isinstance(group, dict) else {}
    return group | {parts[0]: _with_part(group.get(parts[0]), parts[1:], value)}


def _read_values(theirs: dict[str, Given]) -> tuple[dict[str, Any], list[str]]:
    values, problems = {}, []
    for name, one in theirs.items():
        value = one.value
        if _KINDS[name] == list[str] | None and isinstance(value, str):
            value = [value]
        elif _KINDS[name] == str | None and isinstance(value, bool):  # resume_from_checkpoint: true
            value = str(value).lower()
        try:
            values[name] = TypeAdapter(_KINDS[name]).validate_python(value)
        except ValidationError:
            kind = str(RECIPE_NAMES[name].type).replace("typing.", "")
            shown = HIDDEN if is_secret(name) else repr(str(one.value)[:60])
            problems.append(f"{one.where} is {shown}; it must be {kind}.")
    return values, problems


def _both_losses(values: dict[str, Any]) -> list[str]:
    """No value of data.targets means all turns of a conversation and those of a completion alone: rows are not seen."""
    if not (values.get("assistant_only_loss") and values.get("completion_only_loss")):
        return []
    return [
        "assistant_only_loss true and completion_only_loss true cannot be had together in a recipe: for rows of prompt "
        "and completion leave assistant_only_loss out (of messages, the assistant's alone are trained), for "
        "conversations leave completion_only_loss out."
    ]


def _num_data_ranks(rest: Sequence[Given], world_size: int) -> int:
    """Ranks that each compute samples of their own; a wrong number is told elsewhere."""
    sizes = {one.name: one.value for one in rest if one.name in ("ds.ring_attn_size", "ds.tensor_parallel_size")}
    for value in sizes.values():
        world_size //= int(value) if str(value).isdigit() and int(value) else 1
    return max(1, world_size)


def _as_ours(
    root: type[Root], translation: Translation, theirs: dict[str, Given], rest: list[Given], problems: list[str]
) -> Recipe:
    where = next((one.where.partition(":")[0] for one in theirs.values() if _is_in_file(one)), "the recipe")
    given = [Given(name, value, f"{where}: {name}") for name, value in translation.settings.items()]
    told = " ".join(here for _, here in translation.rows)
    defaults = {
        name: value
        for name, value in translation.settings.items()
        if name in settings(root) and f"{name} " not in told and value != _plain(settings(root)[name].default)
    }
    return Recipe(given + rest, translation, defaults, problems + translation.problems)


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def _unknown(one: Given, ours: Collection[str]) -> str:
    if one.name.partition(".")[0] == "env":  # some are read before this file is, by the launcher or at an import
        return f"{one.where} is a variable of the environment: export it before the command, and leave env out."
    near = difflib.get_close_matches(one.name, [*RECIPE_NAMES, *ours], n=1)
    remedy = f" Did you mean {near[0]}?" if near else " Leave it out, or give its name here."
    return f"{one.where} is unknown, here and in TRL, Open-R1 and verifiers.{remedy}"


_KINDS = {
    name: kind
    for group in (SftNames, ModelNames, ScriptArgumentNames, OpenR1Names, VerifiersNames)
    for name, kind in typing.get_type_hints(group).items()
}
