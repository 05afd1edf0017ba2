"""The content of a row (one of three small types), the sample it becomes, and why it may become none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

PAIRS = "pairs"  # the format whose rows become two samples each
Row = dict[str, Any]
# Remarks on rows that are read in a way which their author may not expect.
SYSTEM_IS_READ = "the column 'system' is read as the first message"
HISTORY_IS_READ = "the column 'history' is read as the turns before"
ARGUMENTS_ARE_READ = "'parameters' or 'input' of a tool call are read as its arguments"
FUNCTION_CALL_IS_READ = "the key 'function_call' of a message is read as a tool call"
JSON_CALLS_ARE_READ = "JSON text that begins with a tool call is read as messages"
SHARED_TURNS_ARE_READ = "the turns that both answers begin with are read as a part of the prompt"
MARGIN, MOST_MARGIN = "margin", 1e6
NO_MARGIN = f"the column {MARGIN!r} holds no number from -{MOST_MARGIN:g} to {MOST_MARGIN:g}"
MARGIN_IS_NO_NUMBER = f"{NO_MARGIN}, which --model.margin_loss_enable alone reads"
PADDING_IS_LEFT_OUT = "tokens at the ends that attention_mask hides are left out"
Message = dict[str, Any]


@dataclass(frozen=True)
class PlainText:
    """Text that is tokenized as it is.

    Attributes:
        text: a prompt and its answer, or text alone.
        num_prompt_characters: behind them, the answer's tokens and one end token are targets; None: every token after
            the first is.
        template_spans: the characters that are of the user's own template, not of the row.
        remarks: what the user is told of such rows, with their number.
    """

    text: str
    num_prompt_characters: int | None = None
    template_spans: tuple[tuple[int, int], ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template.

    Attributes:
        messages: dicts with `role` and `content`, free of null values.
        tools: JSON schemas, or None.
        weights: of each message in the loss; 0: context only.
        num_prompt_messages: the completion begins here; None: after the last user message.
        remarks: what the user is told of such rows, with their number.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    weights: list[float] = field(default_factory=list)
    num_prompt_messages: int | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenRow:
    """A row that came tokenized; `loss_mask` follows the contract (index t judges token t+1)."""

    input_ids: list[int]
    loss_mask: list[int]
    remarks: tuple[str, ...] = ()


RowContent = PlainText | Conversation | TokenRow


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, each behind the prompt.

    Attributes:
        margin: by how much the chosen one is said to be better.
        shares_beginning: the prompt is what the two texts begin with.
        remarks: what the user is told of such rows, with their number.
    """

    chosen: RowContent
    rejected: RowContent
    margin: float = 0.0
    shares_beginning: bool = False
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedSample:
    """Token ids and loss mask of one sample.

    Attributes:
        input_ids: `(L,)` int32.
        loss_mask: `(L,)`; entry t judges token t+1, the last is 0. uint8, or float32 where a target weighs other than
            1: then it holds the weights.
        was_cut: the row was longer.
        row_weight: the part of the weights that the row as a whole has. For an answer of a pair it stands here alone.
        remarks: what the user is told of such rows, with their number.
        margin: that of the pair whose answer this is; None: it is of no pair.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    was_cut: bool = False
    row_weight: float = 1.0
    remarks: tuple[str, ...] = ()
    margin: float | None = None

    @property
    def is_weighted(self) -> bool:
        return self.loss_mask.dtype == np.float32 or self.row_weight != 1


class BadRow(Exception):
    """The row cannot be used; counts against `max_bad_rows`. The text says why, and what to do."""


class LeftOut(Exception):
    """The row is fine but does not become a sample; counted under this text."""


def check_unicode(text: str) -> None:
    """Raises BadRow where a text is none that can be encoded."""
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(
            f"the text holds half a surrogate pair ({text[error.start]!a} at character {error.start + 1}), "
            "which is no valid Unicode: repair the row, or the program that wrote it"
        ) from None
