"""Rows and batches `(input_ids, attention_mask, loss_mask)` as users give them: what they hold, or what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from openrlhf.batching.unit import TokenSequence
from openrlhf.errors import UserError

_Collate = TypeVar("_Collate", bound=Callable[..., Any])
_PARTS = "(input_ids, attention_mask, loss_mask)"


def pads_alone(collate_fn: _Collate) -> _Collate:
    """Marks a collate_fn that only pads: the windows of a training are then made of the rows themselves."""
    collate_fn.pads_alone = True  # type: ignore[attr-defined]
    return collate_fn


def changes_rows(collate_fn: Callable[..., Any] | None) -> bool:
    """Whether rows may come out of it otherwise than they went in."""
    while isinstance(collate_fn, partial):
        collate_fn = collate_fn.func
    return collate_fn is not None and not getattr(collate_fn, "pads_alone", False)


def parts_of(item: Any, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The three parts, all as long. Raises UserError, naming what there is, where `item` has no such parts."""
    try:
        first, second, third, *_ = map(torch.as_tensor, item[:3] if isinstance(item, tuple | list) else ())
        is_row_or_batch = first.dim() > 0 and first.numel() == second.numel() == third.numel()
    except (TypeError, ValueError, RuntimeError):  # what is no numbers, or too few of them
        is_row_or_batch = False
    if not is_row_or_batch:
        raise UserError(
            f"{name} is {_shown(item)}, and must be {_PARTS}, all as long: give a data set of such items, or a "
            "collate_fn that makes them."
        )
    return first, second, third


def row_of(item: Any, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The three parts of one row, each (L,), from (L,) or (1, L)."""
    first, *_ = parts = parts_of(item, name)
    if first.numel() != first.shape[-1]:
        raise UserError(f"{name} is {_shown(item)}, and must be one row alone: each part (L,) or (1, L).")
    input_ids, attention_mask, loss_mask = (part.flatten().cpu() for part in parts)
    return input_ids, attention_mask, loss_mask


def sequence_of(
    input_ids: Tensor, attention_mask: Tensor, loss_mask: Tensor, name: str, all_targets: bool = False
) -> TokenSequence:
    """One sample without its padding; each argument is (S,).

    Args: all_targets: every token counts, whatever the loss mask says.

    Raises UserError for masks that are none.
    """
    _check_attention(attention_mask, name)
    is_token = attention_mask.bool()
    ids, mask = input_ids[is_token], loss_mask[is_token]
    if all_targets:
        return TokenSequence(ids, torch.ones_like(mask))
    _check_loss_mask(ids, mask, name)
    return TokenSequence(ids, mask)


def _check_attention(mask: Tensor, name: str) -> None:
    if wrong := mask[(mask != 0) & (mask != 1)].tolist():
        raise UserError(
            f"{name} has an attention mask with {wrong[0]:g}: it must be 1 for a token and 0 for padding. Samples that "
            "a mask numbers within a row are given as rows of their own; --ds.packing_samples packs them."
        )


def _check_loss_mask(ids: Tensor, mask: Tensor, name: str) -> None:
    if not mask.numel():
        return
    smallest, largest = float(mask.min()), float(mask.max())  # a NaN is both
    are_ids = largest > 1 and bool((mask == ids).all())
    if smallest >= 0 and largest < math.inf and not are_ids:
        return
    found = "the token ids themselves" if are_ids else f"{largest if smallest >= 0 else smallest:g}"
    raise UserError(
        f"{name} has a loss mask with {found}. Are these labels? A loss mask has 1 where the next token counts and 0 "
        "where it does not, or the weight of that token."
    )


def _shown(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a {type(item).__name__} with {', '.join(map(str, item))}"
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {len(item)}: {', '.join(map(_shown_part, item[:5]))}"
    return _shown_part(item)


def _shown_part(part: Any) -> str:
    shape = getattr(part, "shape", None)
    return f"a {type(part).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
