"""Reading a column of a row, with errors that name what is there."""

from __future__ import annotations

import json
from typing import Any

from openrlhf.datasets.samples import BadRow, Row


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


def json_value(value: Any, where: str) -> Any:
    """An object given as such or as JSON text; raises BadRow if the text is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadRow(f"{where} is no valid JSON ({error.msg} at character {error.pos + 1}): {value[:60]!r}") from None


def names(row: Row) -> str:
    return ", ".join(repr(key) for key in row) or "no columns"


def kind(value: Any) -> str:
    """What a value is, in a user's words."""
    if value is None:
        return "nothing (null)"
    words = {
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return words.get(type(value), type(value).__name__)
