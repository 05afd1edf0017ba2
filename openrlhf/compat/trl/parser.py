"""TrlParser: dataclasses from a command line and a YAML recipe."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from transformers import HfArgumentParser

from openrlhf.compat.trl.arguments import TrlModelConfig
from openrlhf.config.sources import settings_of_file
from openrlhf.errors import UserError

_CONFIG = "--config"


class TrlParser(HfArgumentParser):
    """Fills dataclasses from flags, and from the file of `--config`; flags win.

    Args: dataclass_types: what is filled, in the order in which it is given back; none may have a field `config`.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any):
        super().__init__(dataclass_types, **kwargs)
        if any(field.name == "config" for kind in self.dataclass_types for field in dataclasses.fields(kind)):
            raise ValueError("a dataclass has a field named config, which is the flag of the recipe: rename it")
        optional = self._optional_names()
        for action in self._actions:
            if action.dest in optional and action.type not in (None, str) and action.nargs != "+":
                action.type = _or_none(action.type)  # text may be "none": report_to

    def _optional_names(self) -> set[str]:
        hints = [one for kind in self.dataclass_types for one in typing.get_type_hints(kind).items()]
        return {name for name, hint in hints if type(None) in typing.get_args(hint)}

    def parse_args_and_config(
        self,
        args: Sequence[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
    ) -> tuple[Any, ...]:
        """An object of each dataclass; with `return_remaining_strings` also the words that belong to none.

        The group `env` of the file sets environment variables first.

        Raises UserError where the file cannot be read or, unless the rest is asked for, where a name is unknown.
        """
        words = [part for word in (sys.argv[1:] if args is None else args) for part in _split(word)]
        left_over = self._take_recipe(words) if _CONFIG in words else []
        *filled, rest = self.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
        for one in filled:
            if isinstance(one, TrlModelConfig):
                one.trust_remote_code = any(getattr(other, "trust_remote_code", False) for other in filled)
        if return_remaining_strings:
            return (*filled, left_over + rest)
        if (left_over or rest) and fail_with_unknown_args:
            unknown = [word for word in (*left_over, *rest) if word.startswith("-")] or rest
            raise UserError(*[self._unknown(word) for word in unknown])
        return tuple(filled)

    def _take_recipe(self, words: list[str]) -> list[str]:
        """Takes `--config FILE` off the words; its values become defaults. What no dataclass has, as flags."""
        place = words.index(_CONFIG)
        path = words[place + 1] if place + 1 < len(words) else ""
        del words[place : place + 2]
        recipe = settings_of_file(path)
        os.environ.update({name: str(value) for name, value in (recipe.pop("env", None) or {}).items()})
        known = {field.name for kind in self.dataclass_types for field in dataclasses.fields(kind)}
        for action in self._actions:
            action.required = action.required and action.dest not in recipe
        self.set_defaults(**{name: value for name, value in recipe.items() if name in known})
        others = {name: value for name, value in recipe.items() if name not in known}
        return [word for name, value in others.items() for word in (f"--{name}", str(value))]

    def error(self, message: str) -> NoReturn:
        """One line and exit code 2: the list of all flags would hide it."""
        self.exit(2, f"{self.prog}: {message}\n")

    def _unknown(self, word: str) -> str:
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        known = [field.name for kind in self.dataclass_types for field in dataclasses.fields(kind)]
        near = difflib.get_close_matches(name, known, n=1)
        return f"{name} is unknown." + (f" Did you mean {near[0]}?" if near else " Leave it out.")


def _or_none(read: Any) -> Callable[[str], Any]:
    """As TRL's parser, which knows None by two words."""

    def parse(word: str) -> Any:
        return None if word.lower() in ("none", "null") else read(word)

    parse.__name__ = read.__name__  # argparse shows it
    return parse


def _split(word: str) -> tuple[str, ...]:
    return (_CONFIG, word.removeprefix(f"{_CONFIG}=")) if word.startswith(f"{_CONFIG}=") else (word,)
