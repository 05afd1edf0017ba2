"""Keys and values of a batch: rows taken out, and batches joined, whose rows are padded on the left to one length."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache


def kept_rows(cache: Any, rows: torch.Tensor, num_left_out: int = 0) -> Any:
    """A cache of the given rows, `(N,)` int64; `num_left_out`: tokens at their left that all have as padding."""
    return _new((layer.keys[rows, :, num_left_out:], layer.values[rows, :, num_left_out:]) for layer in cache.layers)


def joined(first: Any, first_mask: torch.Tensor, second: Any, second_mask: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The rows of both, with their attention mask `(B, S)`."""
    width = max(first_mask.shape[1], second_mask.shape[1])

    def both(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`(B, heads, S, D)` each."""
        return torch.cat([pad(part, (0, 0, width - part.shape[2], 0)) for part in (one, other)])

    cache = _new(
        (both(one.keys, other.keys), both(one.values, other.values))
        for one, other in zip(first.layers, second.layers, strict=True)
    )
    mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (first_mask, second_mask)])
    return cache, mask


def _new(layers: Any) -> Any:
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache
