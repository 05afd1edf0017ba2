"""Conversations: `messages` (role/content), ShareGPT's `conversations` (from/value), or the named column."""

from __future__ import annotations

from openrlhf.datasets.formats.chat import conversation, is_message_list
from openrlhf.datasets.formats.columns import column
from openrlhf.datasets.samples import Conversation, Row
from openrlhf.datasets.settings import DataSettings

COLUMNS = ("messages", "conversations", "conversation")


def fits(row: Row, settings: DataSettings) -> bool:
    if settings.output_key is not None or settings.pretrain_mode:
        return False
    return is_message_list(row.get(settings.input_key or COLUMNS[0])) or any(name in row for name in COLUMNS)


def read(row: Row, settings: DataSettings) -> Conversation:
    return conversation(column(row, _column_name(row, settings)), row)


def _column_name(row: Row, settings: DataSettings) -> str:
    if settings.input_key is not None and settings.input_key in row:
        return settings.input_key
    return next((name for name in COLUMNS if name in row), settings.input_key or COLUMNS[0])
