"""Rotary embeddings whose frequencies depend on a sequence's length, computed by the length of each sample.

transformers takes one set of frequencies for a whole batch, by its greatest position ("longrope": the long factors for
all rows where one row is long; "dynamic": a base that grows, and stays for later batches). What a sample is beside, in
a micro-batch, a pack or a share of a ring, would then change its loss.

Shapes: B batch (1 for a pack), S tokens of a row, D rotary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openrlhf.batching.micro_batch import to_device
from openrlhf.engine.model_internals import rope_by_length
from openrlhf.parallel.sequence_shares import sequence_share


class RopeByLength:
    """Keeps the lengths of the current micro-batch's samples, and corrects a model's rotary embeddings by them."""

    def __init__(self, model: nn.Module):
        self._sample_lengths: Tensor | None = None  # (B, S): of the sample that each token belongs to
        self._numbers: Sequence[int] | None = None  # the lengths that occur, where the host knows them
        modules = [module for module in model.modules() if rope_by_length(module)]
        self.is_needed = bool(modules)
        for module in modules:
            module.register_forward_hook(self._correct, with_kwargs=True)

    def look_at(self, inputs: dict[str, Any]) -> None:
        """Takes the lengths from a micro-batch's inputs; they hold until the next one, also in a recomputation."""
        self._sample_lengths, self._numbers = _sample_lengths(inputs)

    def _correct(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden, positions = (*args, kwargs.get("position_ids"))[:2] if args else (kwargs["x"], kwargs["position_ids"])
        others = {name: value for name, value in kwargs.items() if name not in ("x", "position_ids")}
        others |= {"layer_type": args[2]} if len(args) > 2 else {}
        original = rope_by_length(module, others.get("layer_type"))
        lengths = self._sample_lengths
        if original is None or lengths is None or lengths.shape != positions.shape:
            return output
        # A sample within the original length is computed as any other such; the rest by lengths of their own.
        lengths = lengths.clamp(min=original)
        numbers = lengths.unique().tolist() if self._numbers is None else self._numbers  # of a padded batch: it waits
        for length in sorted({max(original, number) for number in numbers}):
            found = _by_length(module, hidden, positions, length, others)
            output = _where(lengths == length, found, output)
        return output


def _by_length(module: Any, hidden: Tensor, positions: Tensor, length: int, others: dict[str, Any]) -> Any:
    """What the module gives for `positions` in a sequence of `length` tokens, whatever it was given before."""
    module.forward(hidden, torch.zeros_like(positions[:1, :1]), **others)  # "dynamic" goes back to its original base
    last = torch.full_like(positions[:, :1], length - 1)
    output = module.forward(hidden, torch.cat([positions.clamp(max=length - 1), last], dim=1), **others)
    return tuple(part[:, :-1] for part in output) if isinstance(output, tuple) else output[:, :-1]


def _where(is_chosen: Tensor, found: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_where(is_chosen, *parts) for parts in zip(found, output, strict=True))
    return torch.where(is_chosen.reshape(*is_chosen.shape, *[1] * (output.ndim - 2)), found, output)


def _sample_lengths(inputs: dict[str, Any]) -> tuple[Tensor | None, Sequence[int] | None]:
    """(B, S) on the inputs' device, and the lengths that occur; None where the inputs, or those on the host, do not
    tell."""
    device = inputs["input_ids"].device
    if inputs.get("attention_mask") is not None:
        mask = inputs["attention_mask"]
        return mask.sum(-1, keepdim=True).expand(mask.shape), None
    if (ring := inputs.get("ring")) is not None:
        lengths = torch.tensor(ring.sample_lengths)
        borders = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        mine = lengths.repeat_interleave(lengths)[None, sequence_share(borders, ring.rank, ring.size)]
        return to_device(mine, device), ring.sample_lengths
    if "cu_seq_lens_host" in inputs:
        lengths = inputs["cu_seq_lens_host"].diff().long()
        return to_device(lengths.repeat_interleave(lengths)[None], device), lengths.tolist()
    return None, None
