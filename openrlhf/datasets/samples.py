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


@dataclass(frozen=True)
class SampleBlock:
    """N samples end to end: a few arrays go between processes, and to disk, faster than many.

    Attributes:
        input_ids, loss_mask: of all samples, `(tokens,)` each.
        lengths, num_targets: of each sample, `(N,)` int32.
        was_cut: of each sample, `(N,)` bool.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    num_targets: np.ndarray
    was_cut: np.ndarray

    @classmethod
    def of(cls, samples: list[EncodedSample]) -> SampleBlock:
        """The samples, each of one token at least, in their order."""
        lengths = np.array([len(sample.input_ids) for sample in samples], dtype=np.int32)
        loss_mask = _joined([sample.loss_mask for sample in samples], np.uint8)
        firsts = np.cumsum(lengths) - lengths
        num_targets = np.add.reduceat(loss_mask, firsts, dtype=np.int32) if samples else np.zeros(0, np.int32)
        was_cut = np.array([sample.was_cut for sample in samples], dtype=bool)
        return cls(
            _joined([sample.input_ids for sample in samples], np.int32), loss_mask, lengths, num_targets, was_cut
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> EncodedSample:
        end = int(self.lengths[: index + 1].sum())
        place = slice(end - int(self.lengths[index]), end)
        return EncodedSample(self.input_ids[place], self.loss_mask[place], bool(self.was_cut[index]))


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)


class BadRow(Exception):
    """The row cannot be used; counts against `max_bad_rows`. The text says why, and what to do."""


class LeftOut(Exception):
    """The row is fine but does not become a sample; counted under this text."""
