"""Answers that are the row's label: the same text without the white space around it, or the same number."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from openrlhf.rejection.records import Row
from openrlhf.rejection.rewards.functions import NO_LABEL
from openrlhf.rejection.rewards.reward import Reward, RewardVerdict

_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)


class ExactReward(Reward):
    """1 where answer and label are the same, else 0: texts stripped, or numbers of one value (7, 7.0, +7; 1,000)."""

    name = "exact"
    rows_a_call = 512
    needs_label = True

    def judge(self, rows: Sequence[Row]) -> list[RewardVerdict]:
        return [_judge(row["response"], row.get("label")) for row in rows]


def _judge(response: str, label: Any) -> RewardVerdict:
    if label is None:
        return RewardVerdict(None, NO_LABEL)
    wanted = label.strip() if isinstance(label, str) else json.dumps(label)
    given = response.strip()
    number = _number_of(wanted)
    return RewardVerdict(float(given == wanted or (number is not None and number == _number_of(given))))


def _number_of(text: str) -> Decimal | None:
    if not text[-1:].isdigit() or not _NUMBER.fullmatch(text):
        return None
    return Decimal(text.replace(",", ""))
