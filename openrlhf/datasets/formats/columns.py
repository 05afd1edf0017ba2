"""Reading a column of a row, with errors that name what is there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from numbers import Real
from typing import Any

from openrlhf.config import DataConfig
from openrlhf.datasets.json_text import RefusedJson, load_json
from openrlhf.datasets.samples import BadRow, Row

TRL = "trl"  # the format of rows that are read as TRL reads them
DEFAULT_INPUT_KEY = "input"  # OpenRLHF's default: nobody has asked for this column by name
KINDS = {
    type(None): "nothing (null)", bool: "true/false", int: "a number", float: "a number", str: "text",
    list: "a list", dict: "an object",
}  # fmt: skip
WEIGHT = "weight"
MAX_NAMES_SHOWN, MAX_NAME_SHOWN = 20, 60
LEAST_WEIGHT, MOST_WEIGHT = 1e-18, 1e18  # the product of a row's and a turn's weight is still a float32


def column(row: Row, key: str) -> Any:
    """The value of a column; raises BadRow with the columns that exist."""
    if key not in row:
        raise BadRow(f"no column {key!r}; it has {names(row)}")
    return row[key]


def text_column(row: Row, key: str) -> str:
    """The text in a column; raises BadRow if it holds anything else."""
    value = column(row, key)
    if not isinstance(value, str):
        raise BadRow(f"column {key!r} holds {kind(value)} where text belongs")
    return value


def answer_column(row: Row, key: str) -> str:
    """Text that is to be trained: not blank."""
    text = text_column(row, key)
    if not text.strip():
        raise BadRow(f"the answer in column {key!r} is empty")
    return text


def row_weight(row: Row, data: DataConfig) -> float:
    """The row's weight in the loss: 1 without a column `weight`, or where that holds the prompt or answer; 1 to TRL."""
    is_none = data.format == TRL or WEIGHT in (data.input_key, data.output_key)
    return 1.0 if is_none else weight_in(row, f"column {WEIGHT!r}")


def weight_in(holder: dict[str, Any], where: str) -> float:
    """The number under `weight`, 1 if there is none; raises BadRow unless it is 0 or above and finite.

    Text that spells a number is refused: a column of text may mean anything.
    """
    value = holder.get(WEIGHT)
    if value is None:
        return 1.0
    if not is_number(value):
        raise BadRow(
            f"{where} holds {kind(value)} where a number belongs (it weighs targets in the loss): "
            "write a number, 0 or above, or leave it out, which means 1"
        )
    if value != 0 and not LEAST_WEIGHT <= value <= MOST_WEIGHT:
        raise BadRow(
            f"{where} is {str(value)[:30]}: give 0, which leaves out, or a number from {LEAST_WEIGHT} to {MOST_WEIGHT}"
        )
    return float(value)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def json_value(value: Any, where: str) -> Any:
    """An object given as such or as JSON text; raises BadRow if the text is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return load_json(value)
    except json.JSONDecodeError as error:
        raise BadRow(f"{where} is no valid JSON ({error.msg} at character {error.pos + 1}): {value[:60]!r}") from None
    except RefusedJson as error:
        raise BadRow(f"{where}: {error}") from None


def names(row: Mapping[str, Any]) -> str:
    """The names of columns, as far as they can be read at a glance."""
    shown = [repr(str(key)[:MAX_NAME_SHOWN]) for key in itertools.islice(row, MAX_NAMES_SHOWN)]
    more = f" and {len(row) - MAX_NAMES_SHOWN:,} more" if len(row) > MAX_NAMES_SHOWN else ""
    return ", ".join(shown) + more or "no columns"


def kind(value: Any) -> str:
    """The kind of a value, in a user's words."""
    return KINDS.get(type(value), type(value).__name__)
