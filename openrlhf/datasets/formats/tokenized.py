"""Rows that came tokenized: `input_ids` with `labels` or `loss_mask`, used as they are.

`labels[t]` belongs to token t (-100: not a target). `loss_mask` is in one of two conventions. `tokenized`: the
project's own, index t judges token t+1, and the last entry judges nothing. `tokenized_by_token`: entry t says whether
token t itself is a target, as many rollout engines write it. Where a row has both, they must say the same.
Padding at either end, which `attention_mask` hides, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from openrlhf.config import DataConfig
from openrlhf.datasets.formats.columns import column, kind
from openrlhf.datasets.samples import PADDING_IS_LEFT_OUT, BadRow, Row, TokenRow

NOT_A_TARGET = -100
ATTENTION = "attention_mask"
COLUMNS = ("input_ids", "labels", "loss_mask")


def fits(row: Row) -> bool:
    return "input_ids" in row and ("labels" in row or "loss_mask" in row)


def read(row: Row, data: DataConfig) -> TokenRow:
    return _read(row, _judged_by_index)


def read_by_token(row: Row, data: DataConfig) -> TokenRow:
    return _read(row, _judging_next)


def _read(row: Row, convention: Callable[[list[int]], list[int]]) -> TokenRow:
    row, remarks = _without_padding(row)
    ids = _integers(row, "input_ids")
    if "labels" not in row:
        return TokenRow(ids, convention(_mask(row, "loss_mask", ids)), remarks)
    labels = _same_length(row, "labels", ids)
    judged = _judging_next([_is_target(*pair) for pair in zip(ids, labels, strict=True)])
    if row.get("loss_mask") is not None:
        _check_agrees(judged, _mask(row, "loss_mask", ids))
    return TokenRow(ids, judged, remarks)


def _judged_by_index(mask: list[int]) -> list[int]:
    if mask[-1] and not all(mask):
        raise BadRow(
            "the last entry of loss_mask is 1, but index t judges token t+1, so the last judges nothing. "
            "If entry t is meant for token t itself, say --data.format tokenized_by_token"
        )
    return [*mask[:-1], 0]


def _check_agrees(judged: list[int], mask: list[int]) -> None:
    """Raises BadRow unless the mask says what the labels say, in either convention: labels leave no doubt."""
    if judged not in ([*mask[:-1], 0], _judging_next(mask)):
        raise BadRow(
            f"labels and loss_mask disagree: {sum(judged)} targets by the one, {sum(mask)} by the other, or elsewhere; "
            "leave one of them out"
        )


def _without_padding(row: Row) -> tuple[Row, tuple[str, ...]]:
    """The row without the tokens at its ends that its attention_mask hides, and a remark if there are any."""
    if row.get(ATTENTION) is None:
        return row, ()
    ids = _integers(row, "input_ids")
    shown = _mask(row, ATTENTION, ids)
    if all(shown):
        return row, ()
    if not any(shown):
        raise BadRow(f"{ATTENTION} is 0 everywhere, so no token is left: mend the mask, or remove the row")
    first, last = shown.index(1), len(shown) - shown[::-1].index(1)
    if 0 in shown[first:last]:
        raise BadRow(
            f"{ATTENTION} hides token {shown.index(0, first) + 1} between others, where only padding at the ends can "
            "be left out: take such tokens out of the row, or leave the mask out"
        )
    cut = {key: _same_length(row, key, ids)[first:last] for key in COLUMNS if row.get(key) is not None}
    return {**row, **cut}, (PADDING_IS_LEFT_OUT,)


def stand_beside_tokens(rows: Iterable[Row]) -> bool:
    """Whether some mask ends with 1 (and is not all 1): where index t judges token t+1, no writer sets the last."""
    masks = map(_shown_mask, rows)
    return any(isinstance(mask, list) and mask[-1:] == [1] and 0 in mask for mask in masks)


def _shown_mask(row: Row) -> Any:
    """The loss_mask without the entries of padding."""
    mask, shown = row.get("loss_mask"), row.get(ATTENTION)
    if not isinstance(mask, list) or not isinstance(shown, list):
        return mask
    return [entry for entry, is_shown in zip(mask, shown, strict=False) if is_shown]


def _judging_next(targets: list[int]) -> list[int]:
    return [*targets[1:], 0]


def _is_target(token: int, label: int) -> int:
    if label not in (NOT_A_TARGET, token):
        raise BadRow(f"label {label} is neither {NOT_A_TARGET} nor its token {token}: labels stand beside their tokens")
    return int(label != NOT_A_TARGET)


def _mask(row: Row, key: str, ids: list[int]) -> list[int]:
    mask = _same_length(row, key, ids)
    if not set(mask) <= {0, 1}:
        raise BadRow(f"{key} holds {sorted(set(mask) - {0, 1})[0]}: 0 and 1 are allowed")
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
