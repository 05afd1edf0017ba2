"""`prompt` and `completion` columns, as text or as messages."""

from __future__ import annotations

from typing import Any

from openrlhf.datasets.formats.chat import conversation, is_message_list, message_list
from openrlhf.datasets.formats.columns import answer_column, column, kind, text_column
from openrlhf.datasets.formats.plain import prompt_answer
from openrlhf.datasets.samples import BadRow, Conversation, Row, Sample
from openrlhf.datasets.settings import DataSettings

PROMPT, COMPLETION = "prompt", "completion"


def fits(row: Row, settings: DataSettings) -> bool:
    return settings.output_key is None and not settings.pretrain_mode and {PROMPT, COMPLETION} <= set(row)


def read(row: Row, settings: DataSettings) -> Sample:
    prompt, completion = column(row, PROMPT), column(row, COMPLETION)
    if settings.apply_chat_template or is_message_list(prompt) or is_message_list(completion):
        return conversation_of(prompt, completion, row, (PROMPT, COMPLETION))
    return prompt_answer(text_column(row, PROMPT), answer_column(row, COMPLETION), settings)


def conversation_of(prompt: Any, answer: Any, row: Row, keys: tuple[str, str]) -> Conversation:
    """A conversation of prompt and answer, each text (one message) or messages."""
    before = _as_messages(prompt, "user", keys[0])
    after = _as_messages(answer, "assistant", keys[1])
    return conversation(before + after, row, num_prompt_messages=len(before))


def _as_messages(value: Any, role: str, key: str) -> list[Any]:
    if isinstance(value, str):
        if role == "assistant" and not value.strip():
            raise BadRow(f"the answer in column {key!r} is empty")
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        return message_list(value, f"column {key!r}")
    raise BadRow(f"column {key!r} holds {kind(value)} where text or messages belong")
