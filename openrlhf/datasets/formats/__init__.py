"""Rows → their content, by the format that a row's columns tell, or that `--data.format` names.

To add one: a function that reads a row (raises BadRow), a line in `FORMATS`, and the columns that tell it in
`find_format`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from openrlhf.config import DataConfig, PairDataConfig
from openrlhf.datasets.formats import chat, pairs, plain, tokenized, trl
from openrlhf.datasets.formats.columns import DEFAULT_INPUT_KEY, TRL, names
from openrlhf.datasets.samples import PAIRS, Pair, Row, RowContent
from openrlhf.errors import UserError

FORMATS: dict[str, Callable[[Row, Any], RowContent]] = {
    "tokenized": tokenized.read,
    "tokenized_by_token": tokenized.read_by_token,
    "input_output": plain.read_input_output,
    "messages": chat.read,
    "alpaca": plain.read_alpaca,
    "prompt_completion": plain.read_prompt_completion,
    "text": plain.read_text,
}
READERS: dict[str, Callable[[Row, Any], RowContent | Pair]] = {**FORMATS, PAIRS: pairs.read}
SYNONYMS = {"sharegpt": "messages", "chat": "messages", "tools": "messages", "pretrain": "text"}


def reader_of(name: str, data: DataConfig) -> Callable[[Row, Any], RowContent | Pair]:
    """What reads the rows of a format."""
    return partial(trl.read, FORMATS[name]) if data.format == TRL else READERS[name]


def find_format(row: Row, data: DataConfig, where: str, pretrain_mode: bool = False) -> str:
    """The name of the format that the settings say, else of the first that the row fits.

    Args:
        where: the row's name, for the message.
        pretrain_mode: rows that are not tokenized are plain text.

    Raises UserError with the columns that exist.
    """
    if isinstance(data, PairDataConfig):
        _check_pair(row, data, where)
        return PAIRS
    if data.format == TRL and data.output_key is None and not pretrain_mode and (name := trl.find(row, data)):
        return name
    given = None if data.format in ("auto", TRL) else _known_name(data.format)
    if given not in (None, "text"):
        return given
    if given is None and tokenized.fits(row) and not has_named_columns(row, data):
        return "tokenized"
    if missing := [key for key in _asked_for(data) if key not in row]:
        raise UserError(
            f"{where} has no column {' and no column '.join(map(repr, missing))}; it has {names(row)}. "
            "Name the columns by --data.input_key and --data.output_key."
        )
    if pretrain_mode or given == "text":
        return "text"
    if data.output_key is not None:
        return "input_output"
    if chat.fits(row, data):
        return "messages"
    for name, columns in plain.COLUMNS.items():
        if columns <= row.keys():
            return name
    raise UserError(
        f"{where} is in no known format; it has {names(row)}. Known by their columns: messages or conversations; "
        "prompt and completion; instruction and output; text; input_ids with labels or loss_mask. "
        "Name other columns by --data.input_key and --data.output_key."
    )


def has_named_columns(row: Row, data: DataConfig) -> bool:
    """Whether the user named columns of text or messages, and the row has them all; then they are what it says."""
    keys = _asked_for(data)
    return bool(keys) and all(key in row and key not in tokenized.COLUMNS for key in keys)


def _check_pair(row: Row, data: PairDataConfig, where: str) -> None:
    asked_for = [key for key in (data.prompt_key, data.chosen_key, data.rejected_key) if key is not None]
    if missing := [key for key in asked_for if key not in row]:
        raise UserError(
            f"{where} has no column {' and no column '.join(map(repr, missing))}; it has {names(row)}. "
            "Name the columns of pairs by --data.prompt_key, --data.chosen_key and --data.rejected_key."
        )


def _known_name(given: str) -> str:
    name = SYNONYMS.get(given, given)
    if name not in FORMATS:
        raise UserError(f"--data.format {given!r} is unknown: choose auto, {TRL}, {', '.join([*FORMATS, *SYNONYMS])}.")
    return name


def _asked_for(data: DataConfig) -> list[str]:
    """Columns the user named; `input` is a default unless an answer column is named beside it."""
    keys = [data.output_key] if data.output_key is not None else []
    if data.input_key is not None and (keys or data.input_key != DEFAULT_INPUT_KEY):
        keys.insert(0, data.input_key)
    return keys
