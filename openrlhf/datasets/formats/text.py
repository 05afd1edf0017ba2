"""Plain text for continued pre-training: the named column, else `text`."""

from __future__ import annotations

from openrlhf.datasets.formats.columns import answer_column
from openrlhf.datasets.samples import PlainText, Row
from openrlhf.datasets.settings import DataSettings

COLUMN = "text"


def fits(row: Row, settings: DataSettings) -> bool:
    return settings.pretrain_mode or (settings.output_key is None and COLUMN in row)


def read(row: Row, settings: DataSettings) -> PlainText:
    key = settings.input_key if settings.input_key in row else None
    return PlainText(answer_column(row, key or (COLUMN if COLUMN in row else settings.input_key or COLUMN)))
