"""The formats by name, and which of them a row is in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from openrlhf.datasets.formats import alpaca, input_output, messages, prompt_completion, text, tokenized
from openrlhf.datasets.formats.columns import names
from openrlhf.datasets.samples import Row, Sample
from openrlhf.datasets.settings import DataSettings
from openrlhf.errors import UserError

DEFAULT_INPUT_KEY = "input"  # OpenRLHF's default: nobody has asked for this column by name


@dataclass(frozen=True)
class Format:
    """One shape of rows: whether a row fits, and how it is read (raises BadRow)."""

    name: str
    fits: Callable[[Row, DataSettings], bool]
    read: Callable[[Row, DataSettings], Sample]


# In the order in which they are tried.
FORMATS = {
    each.name: each
    for each in (
        Format("tokenized", tokenized.fits, tokenized.read),
        Format("tokenized_by_token", lambda row, settings: False, tokenized.read_by_token),
        Format("input_output", input_output.fits, input_output.read),
        Format("messages", messages.fits, messages.read),
        Format("alpaca", alpaca.fits, alpaca.read),
        Format("prompt_completion", prompt_completion.fits, prompt_completion.read),
        Format("text", text.fits, text.read),
    )
}
SYNONYMS = {"sharegpt": "messages", "chat": "messages", "tools": "messages", "pretrain": "text"}


def find_format(row: Row, settings: DataSettings, where: str) -> Format:
    """The format named by the settings, else the first that the row fits.

    Args: where: the row's name, for the message.
    Raises UserError with the columns that exist.
    """
    if settings.format != "auto":
        return _named(settings.format)
    missing = [key for key in _asked_for(settings) if key not in row]
    if missing and not tokenized.fits(row, settings):
        raise UserError(
            f"{where} has no column {' and no column '.join(map(repr, missing))}; it has {names(row)}. "
            "Name the columns by --data.input_key and --data.output_key."
        )
    for each in FORMATS.values():
        if each.fits(row, settings):
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


def _asked_for(settings: DataSettings) -> list[str]:
    """Columns the user named; `input` is a default unless an answer column is named beside it."""
    keys = [settings.output_key] if settings.output_key is not None else []
    if settings.input_key is not None and (keys or settings.input_key != DEFAULT_INPUT_KEY):
        keys.insert(0, settings.input_key)
    return keys
