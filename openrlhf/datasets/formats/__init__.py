"""Rows → their content. A format is a pair of functions, found by a row's columns or named by `--data.format`.

To add one: a file with a function that tells whether a row fits and one that reads it, and a line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from openrlhf.config import DataConfig
from openrlhf.datasets.formats import chat, plain, tokenized
from openrlhf.datasets.formats.columns import names
from openrlhf.datasets.samples import Row, RowContent
from openrlhf.errors import UserError

DEFAULT_INPUT_KEY = "input"  # OpenRLHF's default: nobody has asked for this column by name


@dataclass(frozen=True)
class Format:
    """One shape of rows: whether a row fits, and how it is read (raises BadRow)."""

    name: str
    fits: Callable[[Row, DataConfig], bool]
    read: Callable[[Row, DataConfig], RowContent]


# In the order in which they are tried.
FORMATS = {
    each.name: each
    for each in (
        Format("tokenized", tokenized.fits, tokenized.read),
        Format("tokenized_by_token", lambda row, data: False, tokenized.read_by_token),
        Format("input_output", plain.fits_input_output, plain.read_input_output),
        Format("messages", chat.fits, chat.read),
        Format("alpaca", plain.fits_alpaca, plain.read_alpaca),
        Format("prompt_completion", plain.fits_prompt_completion, plain.read_prompt_completion),
        Format("text", plain.fits_text, plain.read_text),
    )
}
SYNONYMS = {"sharegpt": "messages", "chat": "messages", "tools": "messages", "pretrain": "text"}


def find_format(row: Row, data: DataConfig, where: str, pretrain_mode: bool = False) -> Format:
    """The format named by the settings, else the first that the row fits.

    Args:
        where: the row's name, for the message.
        pretrain_mode: rows that are not tokenized are plain text.

    Raises UserError with the columns that exist.
    """
    if data.format != "auto":
        return _named(data.format)
    missing = [key for key in _asked_for(data) if key not in row]
    if missing and not tokenized.fits(row, data):
        raise UserError(
            f"{where} has no column {' and no column '.join(map(repr, missing))}; it has {names(row)}. "
            "Name the columns by --data.input_key and --data.output_key."
        )
    if pretrain_mode:
        return FORMATS["tokenized" if tokenized.fits(row, data) else "text"]
    for each in FORMATS.values():
        if each.fits(row, data):
            return each
    raise UserError(
        f"{where} is in no known format; it has {names(row)}. Known by their columns: messages or conversations; "
        "prompt and completion; instruction and output; text; input_ids with labels or loss_mask. "
        "Name other columns by --data.input_key and --data.output_key."
    )


def _named(name: str) -> Format:
    name = SYNONYMS.get(name, name)
    if name not in FORMATS:
        raise UserError(f"--data.format {name!r} is unknown: choose auto, {', '.join([*FORMATS, *SYNONYMS])}.")
    return FORMATS[name]


def _asked_for(data: DataConfig) -> list[str]:
    """Columns the user named; `input` is a default unless an answer column is named beside it."""
    keys = [data.output_key] if data.output_key is not None else []
    if data.input_key is not None and (keys or data.input_key != DEFAULT_INPUT_KEY):
        keys.insert(0, data.input_key)
    return keys
