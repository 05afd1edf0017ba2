"""The functions behind rewards, which run in a process of their own: users', math-verify, verifiers."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openrlhf.config.disk import local_path
from openrlhf.errors import how_to_install
from openrlhf.rejection.answer import answer_of
from openrlhf.rejection.records import Row
from openrlhf.rejection.rewards.environment import VERIFIERS, load_environment
from openrlhf.rejection.rewards.reward import NoReward, RewardVerdict, awaited, text_of, verdicts_of

NO_LABEL = "the row has no label"
MATH = "math"
_TRL, _OPENRLHF = "completions", "queries"
_NOT_COLUMNS = ("prompt", "response")
_PROSE = re.compile(r"[A-Za-z]{2,} +[A-Za-z]{2,}")

Judge = Callable[[Sequence[Row]], list[RewardVerdict]]


def load_function(name: str) -> Judge:
    """The function that `--score.reward` names. Raises NoReward."""
    if name == MATH:
        return _load_math()
    if name.startswith(VERIFIERS):
        return load_environment(name)
    file, _, function = name.rpartition(":")
    return _adapted(_import_function(local_path(file), function), name)


def _import_function(file: Path, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise NoReward(f"the file {file} does not exist")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # of the user's file, which may even leave by sys.exit
        raise NoReward(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        have = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise NoReward(f"{file} has no function {name!r}; it has {', '.join(have) or 'none'}")
    return found


def _adapted(function: Callable[..., Any], name: str) -> Judge:
    """A call by the signature, which the names of the parameters tell."""
    parameters = inspect.signature(function).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    arguments_of = _trl_arguments if _TRL in parameters else _openrlhf_arguments if _OPENRLHF in parameters else None
    if arguments_of is None:
        raise NoReward(
            f"{name} takes {', '.join(parameters) or 'nothing'}: write f(completions, **columns), as for TRL, or "
            "f(queries, prompts, labels, **kwargs), as for OpenRLHF"
        )

    def judge(rows: Sequence[Row]) -> list[RewardVerdict]:
        given = arguments_of(rows)
        result = function(**{key: value for key, value in given.items() if takes_all or key in parameters})
        if inspect.isawaitable(result):
            result = awaited(result)
        return verdicts_of(result, len(rows))

    return judge


def _trl_arguments(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Columns as lists; the answer to a conversation is a list of one message."""
    names = dict.fromkeys(name for row in rows for name in row if name not in _NOT_COLUMNS)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {**columns, "prompts": [row["prompt"] for row in rows], "completions": [answer_of(row) for row in rows]}


def _openrlhf_arguments(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Texts: a query is its prompt, and behind it the answer."""
    prompts = [text_of(row["prompt"]) for row in rows]
    return {
        "queries": [prompt + row["response"] for prompt, row in zip(prompts, rows, strict=True)],
        "prompts": prompts,
        "labels": [row.get("label") for row in rows],
    }


def _load_math() -> Judge:
    """1 where math-verify finds the label's value in the answer, else 0. Its own time limits are off: they give 0."""
    try:
        from math_verify import parse, verify
    except ImportError:
        raise NoReward(f"math needs a package that is not installed: {how_to_install('math')}") from None
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def parsed(text: str) -> list[Any]:
        return list(parse(text, parsing_timeout=None, raise_on_error=True))

    def value_of(label: str) -> list[Any]:
        """Of a label that is no prose, the whole: in plain text math-verify would take a piece of 1+x, the 1."""
        if "####" not in label and ("$" in label or "\\boxed" in label or _PROSE.search(label)):
            return parsed(label)
        label = label.rpartition("####")[2].strip()
        return parsed(f"${label}$") or parsed(label)

    def judge_one(row: Row) -> RewardVerdict:
        if row.get("label") is None:
            return RewardVerdict(None, NO_LABEL)
        gold = value_of(str(row["label"]))
        if not gold:
            return RewardVerdict(None, "math-verify cannot read the label")
        return RewardVerdict(float(verify(gold, parsed(row["response"]), timeout_seconds=None, raise_on_error=True)))

    return lambda rows: [judge_one(row) for row in rows]
