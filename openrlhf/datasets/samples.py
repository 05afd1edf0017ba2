"""The content of a row (one of four small types), the sample it becomes, and why it may become none."""

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
        weights: of each message in the loss; 0: context only.
        num_prompt_messages: the completion begins here; None: after the last user message.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    weights: list[float] = field(default_factory=list)
    num_prompt_messages: int | None = None


@dataclass(frozen=True)
class TokenRow:
    """A row that came tokenized; `loss_mask` follows the contract (index t judges token t+1)."""

    input_ids: list[int]
    loss_mask: list[int]


RowContent = PlainText | PromptAnswer | Conversation | TokenRow


@dataclass(frozen=True)
class EncodedSample:
    """Token ids and loss mask of one sample.

    Attributes:
        input_ids: `(L,)` int32.
        loss_mask: `(L,)`; entry t judges token t+1, the last is 0. uint8, or float32 where a target weighs other than
            1: then it holds the weights.
        was_cut: the row was longer.
        row_weight: the part of the weights that the row as a whole has.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    was_cut: bool = False
    row_weight: float = 1.0

    @property
    def is_weighted(self) -> bool:
        return self.loss_mask.dtype == np.float32


@dataclass(frozen=True)
class SampleBlock:
    """N samples end to end: a few arrays go between processes, and to disk, faster than many.

    Attributes:
        input_ids, loss_mask: of all samples, `(tokens,)` each; the mask is float32 if any sample is weighted.
        lengths, num_targets: of each sample, `(N,)` int32.
        row_weights: of each sample, `(N,)` float32.
        was_cut, is_weighted: of each sample, `(N,)` bool.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    num_targets: np.ndarray
    row_weights: np.ndarray
    was_cut: np.ndarray
    is_weighted: np.ndarray

    @classmethod
    def of(cls, samples: list[EncodedSample]) -> SampleBlock:
        """The samples, each of one token at least, in their order."""
        lengths = np.array([len(sample.input_ids) for sample in samples], dtype=np.int32)
        loss_mask = _joined([sample.loss_mask for sample in samples], np.uint8)
        firsts = np.cumsum(lengths) - lengths
        return cls(
            input_ids=_joined([sample.input_ids for sample in samples], np.int32),
            loss_mask=loss_mask,
            lengths=lengths,
            num_targets=np.add.reduceat(loss_mask > 0, firsts, dtype=np.int32) if samples else np.zeros(0, np.int32),
            row_weights=np.array([sample.row_weight for sample in samples], dtype=np.float32),
            was_cut=np.array([sample.was_cut for sample in samples], dtype=bool),
            is_weighted=np.array([sample.is_weighted for sample in samples], dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> EncodedSample:
        end = int(self.lengths[: index + 1].sum())
        place = slice(end - int(self.lengths[index]), end)
        return EncodedSample(
            self.input_ids[place], self.loss_mask[place], bool(self.was_cut[index]), float(self.row_weights[index])
        )


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)


class BadRow(Exception):
    """The row cannot be used; counts against `max_bad_rows`. The text says why, and what to do."""


class LeftOut(Exception):
    """The row is fine but does not become a sample; counted under this text."""
