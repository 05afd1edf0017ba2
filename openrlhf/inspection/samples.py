"""What is shown of one sample or pair: a title, and its text in parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from openrlhf.batching import TokenSequence
from openrlhf.datasets.pair_dataset import PairDataset
from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.inspection.pieces import Piece, cut

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Part:
    """A stretch of the text; `name` is empty where it is all of a sample, or the prompt of a pair."""

    name: str
    pieces: list[Piece]


def title_of(dataset: SFTDataset | PairDataset, number: int) -> str:
    """Where the sample or pair stands, how long it is, and its weight and margin, if it has any."""
    if not isinstance(dataset, PairDataset):
        weight = dataset.row_weight(number)
        facts = [f"{dataset.num_tokens[number]} tokens, {dataset.num_target_tokens[number]} targets"]
    else:
        unit = dataset.unit(number)
        weight, margin = unit.weight, unit.numbers["margin"]
        facts = [
            f"{side} {len(sequence.input_ids)} tokens, {int((sequence.loss_mask > 0).sum())} targets"
            for side, sequence in zip(SIDES, unit.sequences, strict=True)
        ]
        facts += [f"margin {margin:g}"] if margin else []
    facts += [f"weight {weight:g}"] if weight != 1 else []
    return " · ".join([dataset.sample_name(number), *facts])


def parts_of(dataset: SFTDataset | PairDataset, tokenizer: Any, number: int) -> list[Part]:
    """The sample; or of a pair the prompt that both sides share, and behind it each of the sides."""
    if not isinstance(dataset, PairDataset):
        input_ids, _, loss_mask = (tensor.tolist() for tensor in dataset[number])
        return [Part("", cut(tokenizer, input_ids, loss_mask))]
    chosen, rejected = dataset.unit(number).sequences
    num_shared = _num_shared(chosen, rejected)
    prompt = cut(tokenizer, chosen.input_ids[:num_shared].tolist(), [0] * num_shared)
    differing = _differing(chosen.input_ids[num_shared:].tolist(), rejected.input_ids[num_shared:].tolist())
    sides = [
        Part(
            name,
            [replace(piece, differs=_is_in(piece, places, num_shared)) for piece in _cut(tokenizer, side, num_shared)],
        )
        for name, side, places in zip(SIDES, (chosen, rejected), differing, strict=True)
    ]
    return [Part("", prompt), *sides] if prompt else sides


def _cut(tokenizer: Any, sequence: TokenSequence, first: int) -> list[Piece]:
    return cut(tokenizer, sequence.input_ids.tolist(), sequence.loss_mask.tolist(), first)


def _num_shared(chosen: TokenSequence, rejected: TokenSequence) -> int:
    """The number of tokens with which both begin, before the first target of either."""
    first = min(int(one.loss_mask.argmax()) + 1 for one in (chosen, rejected))
    return int((chosen.input_ids[:first] == rejected.input_ids[:first]).long().cumprod(0).sum())


def _differing(chosen: list[int], rejected: list[int]) -> tuple[set[int], set[int]]:
    """The places of each side's tokens that the other side lacks."""
    differing: tuple[set[int], set[int]] = (set(), set())
    for kind, begin, end, other_begin, other_end in SequenceMatcher(None, chosen, rejected).get_opcodes():
        if kind != "equal":
            differing[0].update(range(begin, end))
            differing[1].update(range(other_begin, other_end))
    return differing


def _is_in(piece: Piece, places: set[int], first: int) -> bool:
    """Whether a token of the piece is among the places, which are counted from token `first` on."""
    return any(piece.first - first + token in places for token in range(len(piece.token_ids)))
