"""The format of pairs: a prompt, and two answers of which one is chosen.

The prompt is text or messages in a column of its own; or the two answers begin with it, and it is all that they share.
"""

from __future__ import annotations

import math
import os
from typing import Any

from openrlhf.config import PairDataConfig
from openrlhf.datasets.formats.chat import conversation, message_list
from openrlhf.datasets.formats.columns import column, is_number, kind
from openrlhf.datasets.formats.plain import as_messages, in_template
from openrlhf.datasets.samples import BadRow, Pair, PlainText, Row, RowContent

MARGIN, PROMPT = "margin", "prompt"
_MOST_MARGIN = 1e6


def read(row: Row, data: PairDataConfig) -> Pair:
    """The row's two answers, each behind the prompt. Raises BadRow where it has none."""
    chosen, rejected = column(row, data.chosen_key), column(row, data.rejected_key)
    prompt = column(row, data.prompt_key) if data.prompt_key is not None else row.get(PROMPT)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return Pair(*_texts(row, data, prompt, chosen, rejected), margin=_margin(row))
    answers = [
        message_list([raw] if isinstance(raw, dict) else raw, f"column {key!r}")
        for raw, key in ((chosen, data.chosen_key), (rejected, data.rejected_key))
    ]
    return Pair(*_messages(row, data, prompt, *answers), margin=_margin(row))


def _texts(row: Row, data: PairDataConfig, prompt: Any, chosen: str, rejected: str) -> tuple[RowContent, RowContent]:
    for answer, key in ((chosen, data.chosen_key), (rejected, data.rejected_key)):
        if not answer.strip():
            raise BadRow(f"the answer in column {key!r} is empty")
    if prompt is None:
        border = _shared_beginning(data, chosen, rejected)
        return PlainText(chosen, border), PlainText(rejected, border)
    if isinstance(prompt, str) and not data.apply_chat_template:
        return in_template(prompt, chosen, data), in_template(prompt, rejected, data)
    before = as_messages(prompt, "user", data.prompt_key or PROMPT)
    of_chosen, of_rejected = (
        conversation([*before, {"role": "assistant", "content": answer}], row, num_prompt_messages=len(before))
        for answer in (chosen, rejected)
    )
    return of_chosen, of_rejected


def _shared_beginning(data: PairDataConfig, chosen: str, rejected: str) -> int:
    """The number of characters that the prompt has, where the two texts begin with it."""
    if data.apply_chat_template:
        raise BadRow("a chat template needs the prompt in a column of its own (--data.prompt_key), or messages")
    border = len(os.path.commonprefix([chosen, rejected]))
    if not chosen[border:].strip() or not rejected[border:].strip():  # one answer goes on where the other ends
        border = max(chosen.rfind(space, 0, border) for space in " \n") + 1
    if not border and chosen != rejected:
        raise BadRow(
            f"columns {data.chosen_key!r} and {data.rejected_key!r} share no beginning, and there is no prompt: name "
            "the prompt's column by --data.prompt_key"
        )
    return border


def _messages(
    row: Row, data: PairDataConfig, prompt: Any, chosen: list[Any], rejected: list[Any]
) -> tuple[RowContent, RowContent]:
    before = [] if prompt is None else as_messages(prompt, "user", data.prompt_key or PROMPT)
    num_shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
    num_shared = min(num_shared, len(chosen) - 1, len(rejected) - 1)
    if num_shared:  # both are whole conversations
        _check_prompt(before, chosen[:num_shared], data)
        before, chosen, rejected = chosen[:num_shared], chosen[num_shared:], rejected[num_shared:]
    elif not before:
        raise BadRow(
            f"columns {data.chosen_key!r} and {data.rejected_key!r} share no first message, and there is no prompt: "
            "name the prompt's column by --data.prompt_key"
        )
    of_chosen, of_rejected = (
        conversation([*before, *answer], row, num_prompt_messages=len(before)) for answer in (chosen, rejected)
    )
    return of_chosen, of_rejected


def _check_prompt(before: list[Any], shared: list[Any], data: PairDataConfig) -> None:
    """A prompt beside whole conversations says the same as their beginning, or nothing."""
    texts = [message.get("content") for message in shared if isinstance(message, dict)]
    for message in before:
        if message not in shared and message.get("content") not in texts:
            raise BadRow(
                f"the prompt in column {data.prompt_key or PROMPT!r} differs from the one with which the answers begin"
            )


def _margin(row: Row) -> float:
    value = row.get(MARGIN)
    if value is None:
        return 0.0
    if not is_number(value) or not math.isfinite(value) or abs(value) > _MOST_MARGIN:
        raise BadRow(f"column {MARGIN!r} holds {value if is_number(value) else kind(value)} where a number belongs")
    return float(value)
