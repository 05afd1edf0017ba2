"""The format of pairs: a prompt, and two answers of which one is chosen.

The prompt is text or messages in a column of its own; or the two answers begin with it, and it is all that they share.
Messages may be JSON text, and whole conversations beside a prompt: then the prompt is a part of their beginning. Turns
that both answers begin with, an assistant's first and a user's among them, follow the prompt and are a part of it.
Other turns that both begin with, as a call and its result, are a part of the prompt where no other stands beside
them, else of both answers.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import replace
from typing import Any

from openrlhf.config import PairDataConfig
from openrlhf.datasets.formats.chat import FUNCTION_CALL, conversation, is_message_list, not_read, with_system
from openrlhf.datasets.formats.columns import column, is_number
from openrlhf.datasets.formats.plain import as_messages, in_template
from openrlhf.datasets.json_text import RefusedJson, load_json
from openrlhf.datasets.samples import (
    JSON_CALLS_ARE_READ,
    MARGIN,
    MARGIN_IS_NO_NUMBER,
    MOST_MARGIN,
    SHARED_TURNS_ARE_READ,
    BadRow,
    Conversation,
    Message,
    Pair,
    PlainText,
    Row,
)

PROMPT = "prompt"
TWICE = "both answers begin with the prompt, which stands before them once more"
_SAYS, _CALLS = ("content", "value"), ("tool_calls", FUNCTION_CALL)  # what a message has beside its role


def read(row: Row, data: PairDataConfig) -> Pair:
    """The row's two answers, each behind the prompt. Raises BadRow where it has none."""
    given = column(row, data.chosen_key), column(row, data.rejected_key), _prompt(row, data)
    opened = chosen, rejected, prompt = tuple(map(_opened, given))
    pair, margin = _pair(row, data, chosen, rejected, prompt), _margin(row)
    remarks = {
        JSON_CALLS_ARE_READ: any(map(_is_call_in_json, given, opened)),
        MARGIN_IS_NO_NUMBER: math.isnan(margin),
    }
    unread = not_read(row, _columns_read(data)) if isinstance(pair.chosen, PlainText) else ()
    told = (name for name, holds in remarks.items() if holds)
    return replace(pair, margin=margin, remarks=(*pair.remarks, *told, *unread))


def _pair(row: Row, data: PairDataConfig, chosen: Any, rejected: Any, prompt: Any) -> Pair:
    """What the row's texts, or messages, are; its margin is not looked at."""
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return _messages(row, data, prompt, chosen, rejected)
    _check_not_empty(chosen, rejected, data)
    if prompt is None:
        return _behind_shared_beginning(chosen, rejected, data)
    if not isinstance(prompt, str) or data.apply_chat_template:
        return _messages(row, data, prompt, chosen, rejected)
    is_twice = bool(prompt.strip()) and chosen.startswith(prompt) and rejected.startswith(prompt)
    sides = in_template(prompt, chosen, data), in_template(prompt, rejected, data)
    return Pair(*sides, remarks=(TWICE,) if is_twice else ())


def _prompt(row: Row, data: PairDataConfig) -> Any:
    if data.prompt_key is None:
        return row.get(PROMPT)
    if (prompt := column(row, data.prompt_key)) is None:
        raise BadRow(f"column {data.prompt_key!r} holds nothing (null) where the prompt belongs")
    return prompt


def _opened(value: Any) -> Any:
    """Messages that a table of texts holds as JSON; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    with suppress(json.JSONDecodeError, RefusedJson):
        found = load_json(value)
        messages = found if isinstance(found, list) else [found]
        if is_message_list(messages) and not {*_SAYS, *_CALLS}.isdisjoint(messages[0]):
            return found
    return value


def _is_call_in_json(given: Any, opened: Any) -> bool:
    first = opened[0] if isinstance(opened, list) else opened
    return isinstance(given, str) and isinstance(first, dict) and {*_SAYS}.isdisjoint(first)


def _columns_read(data: PairDataConfig) -> tuple[str | None, str, str]:
    return data.prompt_key, data.chosen_key, data.rejected_key


def _check_not_empty(chosen: str, rejected: str, data: PairDataConfig) -> None:
    for answer, key in ((chosen, data.chosen_key), (rejected, data.rejected_key)):
        if not answer.strip():
            raise BadRow(f"the answer in column {key!r} is empty")


def _behind_shared_beginning(chosen: str, rejected: str, data: PairDataConfig) -> Pair:
    if data.apply_chat_template or data.input_template is not None:
        raise BadRow("a template needs the prompt in a column of its own (--data.prompt_key), or messages")
    border = len(os.path.commonprefix([chosen, rejected]))
    if not chosen[border:].strip() or not rejected[border:].strip():  # one answer goes on where the other ends
        border = max(chosen.rfind(space, 0, len(chosen[:border].rstrip())) for space in " \n") + 1
    if not border and chosen != rejected:
        raise BadRow(
            f"columns {data.chosen_key!r} and {data.rejected_key!r} share no beginning, and there is no prompt: name "
            "the prompt's column by --data.prompt_key"
        )
    return Pair(PlainText(chosen, border), PlainText(rejected, border), shares_beginning=True)


def _messages(row: Row, data: PairDataConfig, prompt: Any, chosen: Any, rejected: Any) -> Pair:
    before = [] if prompt is None else as_messages(prompt, "user", data.prompt_key or PROMPT)
    sides = [_side(row, before, chosen, data.chosen_key), _side(row, before, rejected, data.rejected_key)]
    answers = [side.messages[len(before) :] for side in sides]
    shared = answers[0][: _num_shared(*answers)]
    if not before and not shared:
        raise BadRow(
            f"columns {data.chosen_key!r} and {data.rejected_key!r} share no first message, and there is no prompt: "
            "name the prompt's column by --data.prompt_key"
        )
    remarks: tuple[str, ...] = ()
    if not before or any(message["role"] == "user" for message in shared):
        if shared[0]["role"] == "assistant" and not _is_part_of(sides[0].messages[: len(before)], shared):
            sides = [replace(side, num_prompt_messages=len(before) + len(shared)) for side in sides]
            remarks = (SHARED_TURNS_ARE_READ,)
        else:  # both are whole conversations
            _check_prompt(sides[0].messages[: len(before)], shared, data)
            sides = [_without_first(side, len(before), num_prompt_messages=len(shared)) for side in sides]
    for side, key in zip(sides, (data.chosen_key, data.rejected_key), strict=True):
        _check_answer(side, key)
    of_chosen, of_rejected = (with_system(side, row, _columns_read(data)) for side in sides)
    return Pair(of_chosen, of_rejected, remarks=remarks)


def _side(row: Row, before: list[Any], answer: Any, key: str) -> Conversation:
    after = as_messages([answer] if isinstance(answer, dict) else answer, "assistant", key)
    try:
        return conversation([*before, *after], row, num_prompt_messages=len(before))
    except BadRow as problem:
        raise BadRow(
            f"column {key!r} behind its prompt: {problem}" if before else f"column {key!r}: {problem}"
        ) from None


def _num_shared(chosen: list[Message], rejected: list[Message]) -> int:
    """The number of messages with which both begin, so that each has one more at least."""
    most = min(len(chosen), len(rejected)) - 1
    return next((number for number in range(most) if chosen[number] != rejected[number]), most)


def _without_first(side: Conversation, count: int, num_prompt_messages: int) -> Conversation:
    return replace(
        side,
        messages=side.messages[count:],
        weights=side.weights[count:],
        num_prompt_messages=num_prompt_messages,
    )


def _is_part_of(before: list[Message], shared: list[Message]) -> bool:
    """Whether a prompt says the same as the beginning of the conversations beside it, or a part of it."""
    known = [(message["role"], message["content"].strip()) for message in shared]
    return all((message["role"], message["content"].strip()) in known for message in before)


def _check_prompt(before: list[Message], shared: list[Message], data: PairDataConfig) -> None:
    if not _is_part_of(before, shared):
        raise BadRow(
            f"the prompt in column {data.prompt_key or PROMPT!r} differs from the one with which the answers begin"
        )


def _check_answer(side: Conversation, key: str) -> None:
    first = side.num_prompt_messages
    assert first is not None, "a pair knows its prompt"
    if side.messages[first]["role"] != "assistant":
        raise BadRow(
            f"the messages in column {key!r} leave the prompt with a message of the {side.messages[first]['role']}, "
            "where the assistant's answer belongs: both answers must be to the same prompt"
        )
    if side.messages[-1]["role"] != "assistant":
        raise BadRow(f"the messages in column {key!r} end with the {side.messages[-1]['role']}, not with an answer")


def _margin(row: Row) -> float:
    """The row's margin, 0 without one; NaN where what stands there is none: few runs read it."""
    value = row.get(MARGIN)
    if value is None:
        return 0.0
    return math.nan if not is_number(value) or not abs(value) <= MOST_MARGIN else float(value)
