"""Units → the tensors of one micro-batch. The one place where the loss mask is shifted against the tokens.

Shapes: B batch, S sequence (padded), T packed tokens, N target tokens, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from openrlhf.batching.rows import parts_of, sequence_of
from openrlhf.batching.unit import TokenSequence, Unit
from openrlhf.parallel.sequence_shares import sequence_share

LossReduction = Literal["token", "sample"]
LEAST_SHARED_TOKENS = 8  # a prompt that is shorter is computed with each sequence


@dataclass(frozen=True)
class MicroBatch:
    """The work of one rank in one forward and backward pass."""

    input_ids: Tensor  # (B, S), or (1, T) packed
    position_ids: Tensor  # the same shape
    attention_mask: Tensor | None  # (B, S) int64, 1 for a token of a sample; None when packed
    cu_seqlens: Tensor | None  # (samples + 1,) int32 borders of the whole pack, on the host; None when padded
    max_seqlen: int | None  # longest sample of the pack; None when padded
    prompt_of: (
        tuple[int | None, ...] | None
    )  # for each sample the one that it goes on from; None: prompts are not shared
    target_index: Tensor  # (N,) int64: place in the flattened input whose hidden state predicts the target
    target_ids: Tensor  # (N,) int64
    target_weights: Tensor  # (N,) float32: the weight of -log p in the loss
    target_sequence: Tensor  # (N,) int64: the sequence of the micro-batch that the target belongs to
    last_index: Tensor  # (E,) int64: place in the flattened input of the last token of a sequence
    last_sequence: Tensor  # (E,) int64: the sequence that the token ends
    unit_numbers: dict[str, Tensor]  # (U,) float32 each, see Unit.numbers
    # The rest speaks of the whole micro-batch, also where a ring shares it.
    unit_names: tuple[str, ...]
    sequences_of_units: tuple[int, ...]  # how many sequences each unit has; they stand in the order of the units
    targets_of_sequences: tuple[int, ...]  # how many targets each sequence has
    unit_weights: tuple[float, ...]
    num_tokens: int  # padding not counted
    num_target_tokens: int
    target_weight_sum: float

    @property
    def unit_weight_sum(self) -> float:
        return sum(self.unit_weights)

    @property
    def num_sequences(self) -> int:
        return sum(self.sequences_of_units)

    def to(self, device: torch.device) -> MicroBatch:
        """On `device`, without waiting for it. The borders stay: what is worked out from them is, on the host."""
        moved: dict[str, Any] = {
            field.name: to_device(value, device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor) and field.name != "cu_seqlens"
        }
        numbers = {name: to_device(value, device) for name, value in self.unit_numbers.items()}
        return replace(self, **moved, unit_numbers=numbers)

    def emptied(self) -> MicroBatch:
        """One of the same form without a unit, which takes next to no memory; its collectives match the others'."""
        return make_micro_batch((), self.cu_seqlens is not None, shares_prompts=self.prompt_of is not None)

    def share(self, ring_rank: int, ring_size: int) -> MicroBatch:
        """This rank's share of a packed micro-batch: its tokens, and the targets that they predict."""
        if ring_size == 1:
            return self
        assert self.cu_seqlens is not None, "only a packed micro-batch is shared by a ring"
        mine = sequence_share(self.cu_seqlens, ring_rank, ring_size)
        place_in_share = torch.full((self.input_ids.shape[1],), -1, dtype=torch.long)
        place_in_share[mine] = torch.arange(len(mine))
        target_index = place_in_share[self.target_index]
        is_mine = target_index >= 0
        last_index = place_in_share[self.last_index]
        ends_here = last_index >= 0
        return replace(
            self,
            input_ids=self.input_ids[:, mine],
            position_ids=self.position_ids[:, mine],
            target_index=target_index[is_mine],
            target_ids=self.target_ids[is_mine],
            target_weights=self.target_weights[is_mine],
            target_sequence=self.target_sequence[is_mine],
            last_index=last_index[ends_here],
            last_sequence=self.last_sequence[ends_here],
        )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies without waiting: to CUDA from page-locked memory, as from any other the host waits for the stream."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def make_micro_batch(
    units: Sequence[Unit],
    packed: bool,
    loss_reduction: LossReduction = "token",
    shares_prompts: bool = False,
) -> MicroBatch:
    """One micro-batch of `units`; of none, one with two tokens and no target, so that collectives still match.

    Args: shares_prompts: in a pack, what the sequences of a unit begin with stands there once.
    """
    sequences = [(sequence, unit.weight) for unit in units for sequence in unit.sequences]
    tokens = [sequence.input_ids for sequence, _ in sequences] or [torch.zeros(2, dtype=torch.long)]
    if packed:
        inputs, places = _packed_inputs(units if shares_prompts else None, tokens)
    else:
        inputs, places = _padded_inputs(tokens)
    placed = list(zip(sequences, places, strict=False))
    targets = [
        _targets(sequence, place, weight if loss_reduction == "sample" else None)
        for (sequence, weight), place in placed
    ]
    num_targets = [len(index) for index, _, _ in targets]
    return MicroBatch(
        **inputs,
        target_index=_cat([index for index, _, _ in targets], torch.long),
        target_ids=_cat([ids for _, ids, _ in targets], torch.long),
        target_weights=_cat([weights for _, _, weights in targets], torch.float32),
        target_sequence=torch.arange(len(targets)).repeat_interleave(torch.tensor(num_targets, dtype=torch.long)),
        last_index=_cat([place.of(torch.tensor([len(one.input_ids) - 1])) for (one, _), place in placed], torch.long),
        last_sequence=torch.arange(len(sequences)),
        unit_numbers=_unit_numbers(units),
        unit_names=tuple(unit.name for unit in units),
        sequences_of_units=tuple(len(unit.sequences) for unit in units),
        targets_of_sequences=tuple(num_targets),
        unit_weights=tuple(unit.weight for unit in units),
        num_tokens=sum(len(sequence.input_ids) for sequence, _ in sequences),
        num_target_tokens=sum(num_targets),
        target_weight_sum=float(sum(weights.double().sum() for _, _, weights in targets)),
    )


def units_of_batch(batch: Sequence[Tensor], name: str, all_targets: bool = False) -> list[Unit]:
    """One unit a row, without padding, of `(input_ids, attention_mask, loss_mask)`, each (B, S) or (B, 1, S).

    Args: all_targets: every token counts, whatever the loss mask says.

    Raises UserError for what is no such batch, and for masks that are none.
    """
    parts = (part.reshape(part.shape[0], part.shape[-1]).cpu() for part in parts_of(batch, name))
    units = []
    for row, (input_ids, attention_mask, loss_mask) in enumerate(zip(*parts, strict=True)):
        place = f"{name}, row {row}"
        units.append(Unit((sequence_of(input_ids, attention_mask, loss_mask, place, all_targets),), place))
    return units


def shared_tokens(unit: Unit) -> int:
    """How many tokens all sequences of a unit begin with, where that is worth a sample of its own in a pack; else 0.

    Each sequence keeps a token of its own.
    """
    first, *others = (sequence.input_ids for sequence in unit.sequences)
    shortest = min(len(ids) for ids in (first, *others)) - 1
    if not others or shortest < LEAST_SHARED_TOKENS:
        return 0
    differs = torch.stack([ids[:shortest] != first[:shortest] for ids in others]).any(0)
    number = int(differs.int().argmax()) if differs.any() else shortest
    return number if number >= LEAST_SHARED_TOKENS else 0


class _Place(NamedTuple):
    """Where a sequence stands in the flattened input: its own tokens, and those that it shares."""

    own: int
    shared: int = 0
    num_shared: int = 0

    def of(self, token: Tensor) -> Tensor:
        """The place of tokens, given by their numbers in the sequence."""
        return token + torch.where(token < self.num_shared, self.shared, self.own - self.num_shared)


def _targets(sequence: TokenSequence, place: _Place, sum_of_weights: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """(index, ids, weights) of the targets of a sequence.

    Args: sum_of_weights: what the weights shall add up to; None: they are the numbers of the loss mask.
    """
    counts = sequence.loss_mask[:-1]
    token = counts.nonzero().flatten()
    weights = counts[token].to(torch.float32)
    if sum_of_weights is not None and len(weights):
        weights = weights / weights.sum() * sum_of_weights
    return place.of(token), sequence.input_ids[token + 1], weights


def _unit_numbers(units: Sequence[Unit]) -> dict[str, Tensor]:
    names = units[0].numbers if units else ()
    return {name: torch.tensor([unit.numbers[name] for unit in units], dtype=torch.float32) for name in names}


def _padded_inputs(tokens: list[Tensor]) -> tuple[dict[str, Any], list[_Place]]:
    """What the transformer is given, and where each sequence stands in it.

    Token 0, which every model has, fills what is masked: a tokenizer's pad token need not have an embedding.
    """
    shape = (len(tokens), max(len(ids) for ids in tokens))
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, ids in enumerate(tokens):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    inputs = dict(
        input_ids=input_ids,
        position_ids=torch.arange(shape[1]).expand(shape).contiguous(),
        attention_mask=attention_mask,
        cu_seqlens=None,
        max_seqlen=None,
        prompt_of=None,
    )
    return inputs, [_Place(row * shape[1]) for row in range(len(tokens))]


def _packed_inputs(units: Sequence[Unit] | None, tokens: list[Tensor]) -> tuple[dict[str, Any], list[_Place]]:
    """What the transformer is given, and where each sequence stands in it.

    Args:
        units: whose sequences share prompts; None: prompts are not shared.
        tokens: of each sequence.
    """
    samples: list[Tensor] = []
    prompt_of: list[int | None] = []
    places: list[tuple[int, int | None]] = []  # the samples of each sequence: its own, and its prompt
    num_shared_of_units = [(shared_tokens(unit), len(unit.sequences)) for unit in units or ()] or [(0, len(tokens))]
    for num_shared, num_sequences in num_shared_of_units:
        prompt = len(samples) if num_shared else None
        if num_shared:
            samples.append(tokens[len(places)][:num_shared])
            prompt_of.append(None)
        for ids in tokens[len(places) : len(places) + num_sequences]:
            places.append((len(samples), prompt))
            samples.append(ids[num_shared:])
            prompt_of.append(prompt)
    starts, lengths = _starts(list(map(len, samples))), list(map(len, samples))
    begins = [0 if prompt is None else lengths[prompt] for prompt in prompt_of]
    inputs = dict(
        input_ids=torch.cat(samples)[None],
        position_ids=torch.cat([torch.arange(b, b + n) for b, n in zip(begins, lengths, strict=True)])[None],
        attention_mask=None,
        cu_seqlens=torch.tensor([*starts, sum(lengths)], dtype=torch.int32),
        max_seqlen=max(lengths),
        prompt_of=None if units is None else tuple(prompt_of),
    )
    return inputs, [
        _Place(starts[own]) if prompt is None else _Place(starts[own], starts[prompt], lengths[prompt])
        for own, prompt in places
    ]


def _starts(lengths: list[int]) -> list[int]:
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    return starts


def _cat(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts).to(dtype) if parts else torch.empty(0, dtype=dtype)
