"""What a row means (one of four small types), what it becomes (EncodedSample), and why it may not become anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Row = dict[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True)
class PlainText:
    """Text of which every token after the first is a target."""

    text: str


@dataclass(frozen=True)
class PromptAnswer:
    """A prompt and its answer as plain text: the answer's tokens and one end token are targets."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template.

    Attributes:
        messages: dicts with `role` and `content`, free of null values.
        tools: JSON schemas, or None.
        trained: one bool a message; False where the row asks not to train it.
        num_prompt_messages: the completion begins here; None: after the last user message.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    trained: list[bool] = field(default_factory=list)
    num_prompt_messages: int | None = None


@dataclass(frozen=True)
class TokenRow:
    """A row that came tokenized; `loss_mask` follows the contract (index t judges token t+1)."""

    input_ids: list[int]
    loss_mask: list[int]


Sample = PlainText | PromptAnswer | Conversation | TokenRow


@dataclass(frozen=True)
class EncodedSample:
    """Token ids and the loss mask of one sample, each `(L,)`; `loss_mask[t]` judges token t+1, its last entry is 0."""

    input_ids: np.ndarray
    loss_mask: np.ndarray
    was_cut: bool = False

    @property
    def num_target_tokens(self) -> int:
        return int(self.loss_mask.sum())


class BadRow(Exception):
    """The row cannot be used; counts against `max_bad_rows`. The text says why, and what to do."""


class LeftOut(Exception):
    """The row is fine but does not become a sample; counted under this text."""
