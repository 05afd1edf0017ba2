"""Rows that came tokenized: `input_ids` with `labels` or `loss_mask`, used as they are.

`labels[t]` belongs to token t (-100: not a target). `loss_mask` is in one of two conventions. `tokenized`: the
project's own, index t judges token t+1, and the last entry judges nothing. `tokenized_by_token`: entry t says whether
token t itself is a target, as many rollout engines write it.
"""

from __future__ import annotations

from collections.abc import Iterable

from openrlhf.config import DataConfig
from openrlhf.datasets.formats.columns import column, kind
from openrlhf.datasets.samples import BadRow, Row, TokenRow

NOT_A_TARGET = -100


def fits(row: Row) -> bool:
    return "input_ids" in row and ("labels" in row or "loss_mask" in row)


def read(row: Row, data: DataConfig) -> TokenRow:
    ids = _integers(row, "input_ids")
    if "labels" in row:
        labels = _same_length(row, "labels", ids)
        return TokenRow(ids, _judging_next([_is_target(*pair) for pair in zip(ids, labels, strict=True)]))
    mask = _mask(row, ids)
    if mask[-1] and not all(mask):
        raise BadRow(
            "the last entry of loss_mask is 1, but index t judges token t+1, so the last judges nothing. "
            "If entry t is meant for token t itself, say --data.format tokenized_by_token"
        )
    return TokenRow(ids, [*mask[:-1], 0])


def read_by_token(row: Row, data: DataConfig) -> TokenRow:
    if "labels" in row:
        return read(row, data)
    ids = _integers(row, "input_ids")
    return TokenRow(ids, _judging_next(_mask(row, ids)))


def stand_beside_tokens(rows: Iterable[Row]) -> bool:
    """Whether some mask ends with 1 (and is not all 1): where index t judges token t+1, no writer sets the last."""
    masks = (row.get("loss_mask") for row in rows)
    return any(isinstance(mask, list) and mask[-1:] == [1] and 0 in mask for mask in masks)


def _judging_next(targets: list[int]) -> list[int]:
    return [*targets[1:], 0]


def _is_target(token: int, label: int) -> int:
    if label not in (NOT_A_TARGET, token):
        raise BadRow(f"label {label} is neither {NOT_A_TARGET} nor its token {token}: labels stand beside their tokens")
    return int(label != NOT_A_TARGET)


def _mask(row: Row, ids: list[int]) -> list[int]:
    mask = _same_length(row, "loss_mask", ids)
    if not set(mask) <= {0, 1}:
        raise BadRow(f"loss_mask holds {sorted(set(mask) - {0, 1})[0]}: 0 and 1 are allowed")
    return mask


def _same_length(row: Row, key: str, ids: list[int]) -> list[int]:
    values = _integers(row, key)
    if len(values) != len(ids):
        raise BadRow(f"{key} has {len(values)} entries, input_ids has {len(ids)}")
    return values


def _integers(row: Row, key: str) -> list[int]:
    values = column(row, key)
    if not isinstance(values, list) or not values or not all(isinstance(value, int) for value in values):
        raise BadRow(f"column {key!r} holds {kind(values)} where a list of whole numbers belongs")
    return [int(value) for value in values]
