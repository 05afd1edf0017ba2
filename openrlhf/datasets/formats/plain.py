"""Formats of plain columns: a text; a prompt and its answer, under names of their own or of the user's choice.

The content of a prompt or answer is text, or messages. Pairs of texts are a conversation if the user asks for a chat
template, else they are joined as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openrlhf.config import DataConfig
from openrlhf.datasets.formats.chat import SYSTEM, conversation, is_message_list, message_list, not_read, with_system
from openrlhf.datasets.formats.columns import answer_column, column, json_value, kind, text_column
from openrlhf.datasets.samples import HISTORY_IS_READ, BadRow, Conversation, Message, PlainText, Row

TEXT = "text"
PROMPT, COMPLETION = "prompt", "completion"
_PLACE = "\x00"  # stands in no template
INSTRUCTION, INPUT, OUTPUT, HISTORY = "instruction", "input", "output", "history"
# The columns that tell a format, in the order in which they are tried.
COLUMNS = {"alpaca": {INSTRUCTION, OUTPUT}, "prompt_completion": {PROMPT, COMPLETION}, "text": {TEXT}}


def read_text(row: Row, data: DataConfig) -> PlainText:
    """Text for continued pre-training, from the named column, else from `text`."""
    key = data.input_key if data.input_key in row else None
    return PlainText(answer_column(row, key or (TEXT if TEXT in row else data.input_key or TEXT)))


def read_input_output(row: Row, data: DataConfig) -> PlainText | Conversation:
    """The columns that `--data.input_key` and `--data.output_key` name."""
    return _prompt_and_answer(row, data, data.input_key or INPUT, data.output_key or OUTPUT)


def read_prompt_completion(row: Row, data: DataConfig) -> PlainText | Conversation:
    content = _prompt_and_answer(row, data, PROMPT, COMPLETION)
    return with_system(content, row) if isinstance(content, Conversation) else replace(content, remarks=not_read(row))


def read_alpaca(row: Row, data: DataConfig) -> PlainText | Conversation:
    """Alpaca's columns: `instruction`, an `input` that may be empty, and `output`; `system` and `history`, if any."""
    prompt, answer = text_column(row, INSTRUCTION), answer_column(row, OUTPUT)
    if row.get(INPUT):
        prompt = f"{prompt}\n\n{text_column(row, INPUT)}"
    history = _history(row)
    if data.apply_chat_template:
        content = _conversation(row, [*history, *as_messages(prompt, "user", INSTRUCTION)], answer, INSTRUCTION, OUTPUT)
        content = replace(content, remarks=(*content.remarks, HISTORY_IS_READ)) if history else content
        return with_system(content, row)
    system = row.get(SYSTEM)
    if history or (isinstance(system, str) and system.strip()):
        raise BadRow(
            f"column {HISTORY if history else SYSTEM!r} has no place in a plain text: add --data.apply_chat_template, "
            "or remove the column"
        )
    return in_template(prompt, answer, data)


def _history(row: Row) -> list[Message]:
    """The turns before the instruction, from alpaca's pairs of a question and its answer."""
    pairs = json_value(row.get(HISTORY) or [], f"column {HISTORY!r}") or []
    if not isinstance(pairs, list):
        raise BadRow(f"column {HISTORY!r} holds {kind(pairs)} where a list of [question, answer] belongs")
    messages = list[Message]()
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise BadRow(f"column {HISTORY!r}, turn {number}: [question, answer] belongs there, two texts")
        messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    return messages


def _prompt_and_answer(row: Row, data: DataConfig, prompt_key: str, answer_key: str) -> PlainText | Conversation:
    prompt, answer = column(row, prompt_key), column(row, answer_key)
    if data.apply_chat_template or is_message_list(prompt) or is_message_list(answer):
        return _conversation(row, prompt, answer, prompt_key, answer_key)
    return in_template(text_column(row, prompt_key), answer_column(row, answer_key), data)


def in_template(prompt: str, answer: str, data: DataConfig) -> PlainText:
    if data.input_template is None:
        return PlainText(prompt + answer, len(prompt))
    before, behind = data.input_template.format(_PLACE).split(_PLACE)
    end = len(before) + len(prompt)
    spans = ((0, len(before)), (end, end + len(behind)))
    return PlainText(before + prompt + behind + answer, end + len(behind), spans)


def _conversation(row: Row, prompt: Any, answer: Any, prompt_key: str, answer_key: str) -> Conversation:
    before = as_messages(prompt, "user", prompt_key)
    after = as_messages(answer, "assistant", answer_key)
    return conversation(before + after, row, num_prompt_messages=len(before))


def as_messages(value: Any, role: str, key: str) -> list[Any]:
    """Text as one message of the role; messages as they are."""
    if isinstance(value, str):
        if role == "assistant" and not value.strip():
            raise BadRow(f"the answer in column {key!r} is empty")
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        return message_list(value, f"column {key!r}")
    raise BadRow(f"column {key!r} holds {kind(value)} where text or messages belong")
