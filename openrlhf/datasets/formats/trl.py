"""Rows as TRL takes them: which format a row of its scripts and recipes is in, and the columns that TRL does not read.

`--data.format trl` stands for it: prompt and completion, else messages, else the text in one column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from openrlhf.config import DataConfig
from openrlhf.datasets.formats import chat, plain, tokenized
from openrlhf.datasets.formats.columns import WEIGHT
from openrlhf.datasets.samples import Conversation, Row, RowContent

FROM_VALUE = "conversations"
_IS_READ_HERE = "beside a recipe, --data.format auto reads what has a meaning here"
MESSAGES_WEIGH_THE_SAME = f"'train' and 'weight' of a message are not read, as in TRL: {_IS_READ_HERE}"
NOT_READ = {  # columns, and what to do
    WEIGHT: _IS_READ_HERE,
    chat.SYSTEM: _IS_READ_HERE,
    "completion_mask": "give completion_only_loss true, or labels",
}


def find(row: Row, data: DataConfig) -> str | None:
    """The name of the row's format; None: TRL knows none, and no conversation is there by another name."""
    if tokenized.fits(row):
        return "tokenized"
    if {plain.PROMPT, plain.COMPLETION} <= row.keys():
        return "prompt_completion"
    if _is_conversation(row, data):
        return "messages"
    if (data.input_key or plain.TEXT) in row:
        return "text"
    return "messages" if chat.fits(row, DataConfig()) else None


def _is_conversation(row: Row, data: DataConfig) -> bool:
    """By the columns of TRL's, or by the one that is named: messages are no text."""
    others: Any = row.get(FROM_VALUE)
    is_from_value = chat.is_message_list(others) and "from" in others[0]
    return is_from_value or chat.is_message_list(row.get("messages")) or _names_messages(row, data)


def _names_messages(row: Row, data: DataConfig) -> bool:
    return data.input_key is not None and chat.is_message_list(row.get(data.input_key))


def read(reader: Callable[[Row, Any], RowContent], row: Row, data: DataConfig) -> RowContent:
    """What a format's reader makes of the row without the columns that TRL does not read; the user is told of them."""
    named = (data.input_key, data.output_key)
    not_read = [name for name in NOT_READ if row.get(name) is not None and name not in named]
    if reader is chat.read and not _names_messages(row, data):
        data = replace(data, input_key=None)  # it names the text of rows that are no conversation
    kept = {name: value for name, value in row.items() if name not in not_read}
    is_weighed = any(_is_weighed(one) for value in kept.values() if chat.is_message_list(value) for one in value)
    content = reader({name: _without_weights(value) for name, value in kept.items()}, data)
    remarks = [_remark(name) for name in not_read]
    if isinstance(content, Conversation) and (is_weighed or set(content.weights) - {1.0}):  # the latter of JSON text
        content = replace(content, weights=[1.0] * len(content.messages))
        remarks.append(MESSAGES_WEIGH_THE_SAME)
    return replace(content, remarks=(*content.remarks, *remarks))


def _is_weighed(message: Any) -> bool:
    """Whether it says anything but the usual of its weight."""
    return isinstance(message, dict) and any(message.get(name) not in (None, 1) for name in chat.TRAINING_KEYS)


def _without_weights(value: Any) -> Any:
    """Messages without what weighs them here, whatever it holds; another value as it is."""
    if not chat.is_message_list(value):
        return value
    return [
        {name: item for name, item in one.items() if name not in chat.TRAINING_KEYS} if isinstance(one, dict) else one
        for one in value
    ]


def _remark(name: str) -> str:
    return f"the column {name!r} is not read, as in TRL: {NOT_READ[name]}"
