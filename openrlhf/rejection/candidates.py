"""Scored answers as arrays, an entry an answer; their texts stay on the disk. A million take about 100 MB."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash

from openrlhf.datasets.formats.chat import is_message_list
from openrlhf.errors import UserError
from openrlhf.rejection.equations import equations_of
from openrlhf.rejection.records import Place, Row, StoredRows
from openrlhf.rejection.rewards.reward import is_reward

LengthUnit = Literal["tokens", "characters"]


@dataclass(frozen=True)
class Candidates:
    """Answers with their rewards, in the order of the files.

    Attributes:
        prompt_ids: of each prompt, sorted.
        prompt: (N,) int32, the prompt's place in `prompt_ids`.
        reward: (N,) float64, nan without a verdict.
        tie: (N,) uint64, hash of the answer and of what identifies it: the order of answers of equal reward.
        text, equations: (N,) uint64, hash of the stripped text with its tool calls, of the sequence of its equations.
        length: (N,) int32, in tokens if all answers were counted, else in characters; `length_unit` says which.
        is_truncated, is_empty: (N,) bool.
        file, offset: (N,), where the row stands.
    """

    prompt_ids: list[str]
    prompt: np.ndarray
    reward: np.ndarray
    tie: np.ndarray
    text: np.ndarray
    equations: np.ndarray
    length: np.ndarray
    is_truncated: np.ndarray
    is_empty: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    length_unit: LengthUnit

    def __len__(self) -> int:
        return len(self.prompt)

    def place(self, number: int) -> Place:
        return Place(int(self.file[number]), int(self.offset[number]))

    def best_first(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers by prompt, and the best of a prompt first: a total order, whatever the order of the files."""
        return numbers[np.lexsort((self.tie[numbers], -self.reward[numbers], self.prompt[numbers]))]


def read_candidates(rows: StoredRows, with_equations: bool = False) -> Candidates:
    """One pass over the rows. Raises UserError of a row that is no scored answer, or has the id of another prompt."""
    columns = {name: array(code) for name, code in _CODES.items()}
    prompts = PromptIds(rows)
    for number, (place, row) in enumerate(rows.placed(), start=1):
        try:
            for name, value in _facts(row, prompts, with_equations):
                columns[name].append(value)
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{rows.path}: answer {number} has no prompt, response or reward that can be read "
                f"({type(error).__name__}: {error}). Give the folder that score has written."
            ) from error
        columns["file"].append(place.file)
        columns["offset"].append(place.offset_bytes)
    arrays = {name: np.frombuffer(column, column.typecode) for name, column in columns.items() if len(column)}
    arrays = arrays or {name: np.zeros(0, code) for name, code in _CODES.items()}
    ids = list(prompts.numbers)
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    rank = np.empty(len(ids), np.int32)
    rank[by_id] = np.arange(len(ids))
    arrays["prompt"] = rank[arrays["prompt"]] if ids else arrays["prompt"]
    for name in ("is_truncated", "is_empty"):
        arrays[name] = arrays[name].astype(bool)
    tokens, characters = arrays.pop("tokens"), arrays.pop("characters")
    is_counted = bool((tokens != _NOT_COUNTED).all())
    arrays["length"] = tokens if is_counted else characters
    unit: LengthUnit = "tokens" if is_counted else "characters"
    return Candidates([ids[number] for number in by_id], **arrays, length_unit=unit)


_CODES = {
    "prompt": "i", "reward": "d", "tie": "Q", "text": "Q", "equations": "Q", "tokens": "i", "characters": "i",
    "is_truncated": "b", "is_empty": "b", "file": "i", "offset": "q",
}  # fmt: skip
_NOT_COUNTED = -1  # by the server that answered


def _facts(row: Row, prompts: PromptIds, with_equations: bool) -> Iterator[tuple[str, Any]]:
    text, reward = row["response"], row["reward"]
    if not isinstance(row["prompt"], str) and not is_message_list(row["prompt"]):
        raise TypeError("its prompt is neither text nor messages")
    stripped, calls = text.strip(), row.get("tool_calls")
    told = stripped + json.dumps([call.get("function") for call in calls]) if calls else stripped  # ids are drawn
    yield "prompt", prompts.number_of(row)
    yield "reward", reward if reward is not None and is_reward(reward) else math.nan
    yield "tie", identity_of(row)
    yield "text", (text_hash := _hash(told))
    equations = equations_of(text) if with_equations else ()
    yield "equations", _hash("\0".join(equations)) if equations else text_hash
    yield "tokens", _NOT_COUNTED if (tokens := row.get("num_tokens")) is None else tokens
    yield "characters", len(text)
    yield "is_truncated", row.get("finish_reason") == "length"
    yield "is_empty", not told


class PromptIds:
    """The prompts of rows, numbered as they come. Attributes: numbers: by id."""

    def __init__(self, source: StoredRows):
        self.numbers: dict[str, int] = {}
        self._source, self._hashes = source, array("Q")

    def number_of(self, row: Row) -> int:
        """Raises UserError where another prompt has the row's id: its answers would be taken for answers to this."""
        key, told = prompt_id_of(row), _hash_of_prompt(row)
        number = self.numbers.setdefault(key, len(self.numbers))
        if number == len(self._hashes):
            self._hashes.append(told)
        elif self._hashes[number] != told:
            place, first = next(one for one in enumerate(self._source, start=1) if prompt_id_of(one[1]) == key)
            raise UserError(
                f"{self._source.path}: the prompts {str(first['prompt'])[:60]!r} (of answer {place:,}) and "
                f"{str(row['prompt'])[:60]!r} have one prompt_id, {key!r}: give each an id of its own, or leave the "
                "column out."
            )
        return number


def prompt_id_of(row: Row) -> str:
    """The row's own, else a hash of its prompt."""
    found = row.get("prompt_id")
    return str(found) if found is not None else f"{_hash_of_prompt(row):016x}"


def _hash_of_prompt(row: Row) -> int:
    return _hash(json.dumps(row["prompt"], sort_keys=True))


def identity_of(row: Row) -> int:
    """Hash of the answer and of what tells it from other answers."""
    told = (prompt_id_of(row), row.get("sample_index"), row.get("seed"), row.get("model"), row["response"])
    return _hash("\0".join(map(str, told)))


def judged_identity_of(row: Row) -> int:
    """That of the answer, and of the label that it is compared with."""
    label, answer = row.get("label"), identity_of(row)
    return answer if label is None else _hash(f"{answer}\0{json.dumps(label, sort_keys=True, default=str)}")


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def first_of_each(*keys: np.ndarray) -> np.ndarray:
    """Of entries sorted so that equal keys are neighbours: (N,) bool, whether an entry is the first with its keys."""
    is_first = np.ones(len(keys[0]), bool)
    if len(is_first):
        is_first[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return is_first


def rank_in_prompt(prompt: np.ndarray) -> np.ndarray:
    """Of entries sorted by prompt: (N,) the place of each in its prompt, from 0."""
    starts = np.flatnonzero(first_of_each(prompt))
    return np.arange(len(prompt)) - np.repeat(starts, np.diff([*starts, len(prompt)]))
