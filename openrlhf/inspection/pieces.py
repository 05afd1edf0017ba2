"""The text of a sample in pieces: what of it is trained, and how that is coloured in a terminal."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from rich.text import Text

TARGET, SPECIAL_TARGET, SPECIAL, CONTEXT = "bold green", "bold black on green", "magenta", "dim"
WEIGHT, DIFFERS = "yellow", "underline"
VISIBLE = str.maketrans({"\t": "⇥", "\r": "␍", "\x00": "␀", "\x1b": "␛"})
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
        differs: of one answer of a pair, and not of the other.
    """

    text: str
    first: int
    token_ids: list[int]
    weight: float
    is_special: bool
    differs: bool = False

    @property
    def is_target(self) -> bool:
        return self.weight > 0


def cut(tokenizer: Any, input_ids: list[int], loss_mask: list[float], first: int = 0) -> list[Piece]:
    """The pieces of a sample from its token `first` on, in order."""
    weights = [0, *loss_mask[:-1]]
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    pieces, start = [], first
    while start < len(input_ids):
        end = _end_of_character(tokenizer, input_ids, weights, start)
        ids = input_ids[start:end]
        pieces.append(Piece(_decode(tokenizer, ids), start, ids, weights[start], ids[0] in specials))
        start = end
    return pieces


def _end_of_character(tokenizer: Any, ids: list[int], weights: list[float], start: int) -> int:
    """The end of the shortest run of tokens that is whole text; one token if there is none."""
    for end in range(start + 1, min(start + MAX_TOKENS_A_CHARACTER, len(ids)) + 1):
        if weights[end - 1] != weights[start]:
            break
        if REPLACEMENT not in _decode(tokenizer, ids[start:end]):
            return end
    return start + 1


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def coloured(pieces: list[Piece], has_colours: bool) -> Text:
    """The sample's text; without colours, targets stand between ⟦ and ⟧. Their weight follows, unless it is 1.

    What differs from the other answer of a pair is underlined; without colours it stands between ‹ and ›.
    """
    text = Text()
    for weight, run in itertools.groupby(pieces, key=lambda piece: piece.weight):
        opening, closing = ("⟦", "⟧") if weight and not has_colours else ("", "")
        text.append(opening)
        for differs, stretch in itertools.groupby(run, key=lambda piece: piece.differs):
            marks = ("‹", "›") if differs and not has_colours else ("", "")
            text.append(marks[0])
            for piece in stretch:
                text.append(piece.text.translate(VISIBLE).replace("\n", "⏎\n"), style=_style(piece))
            text.append(marks[1])
        text.append(closing)
        if weight not in (0, 1):
            text.append(f"×{weight:g}", style=WEIGHT)
    return text


def _style(piece: Piece) -> str:
    if piece.is_special:
        style = SPECIAL_TARGET if piece.is_target else SPECIAL
    else:
        style = TARGET if piece.is_target else CONTEXT
    return f"{style} {DIFFERS}" if piece.differs else style
