"""A sample as pieces of text, each with its tokens and its weight in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openrlhf.datasets.sft_dataset import SFTDataset

MAX_TOKENS_A_CHARACTER = 8
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """The text of one token (of several, where one character takes several).

    Attributes:
        first: index of its first token in the sample.
        token_ids: its tokens.
        weight: entry `first - 1` of the loss mask; above 0 the piece is trained.
        is_special: a special token, such as the end token.
    """

    text: str
    first: int
    token_ids: list[int]
    weight: float
    is_special: bool

    @property
    def is_target(self) -> bool:
        return self.weight > 0


def pieces_of(dataset: SFTDataset, tokenizer: Any, index: int) -> list[Piece]:
    """The pieces of a sample, in order."""
    input_ids, _, loss_mask = (tensor.tolist() for tensor in dataset[index])
    weights = [0, *loss_mask[:-1]]
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    pieces, start = [], 0
    while start < len(input_ids):
        end = _end_of_character(tokenizer, input_ids, weights, start)
        ids = input_ids[start:end]
        pieces.append(Piece(_text(tokenizer, ids), start, ids, weights[start], ids[0] in specials))
        start = end
    return pieces


def _end_of_character(tokenizer: Any, ids: list[int], weights: list[float], start: int) -> int:
    """The end of the shortest run of tokens that is whole text; one token if there is none."""
    for end in range(start + 1, min(start + MAX_TOKENS_A_CHARACTER, len(ids)) + 1):
        if weights[end - 1] != weights[start]:
            break
        if REPLACEMENT not in _text(tokenizer, ids[start:end]):
            return end
    return start + 1


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
