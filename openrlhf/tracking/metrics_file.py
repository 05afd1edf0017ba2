"""The lines of `metrics.jsonl`: how a record becomes one, how a file is read and cut back to a step.

The file is valid JSON, line by line. JSON has no nan and no infinity: both are written as null, so null says
that the number was not finite.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openrlhf.atomic_file import replace_file

logger = logging.getLogger(__name__)


def to_line(record: Mapping[str, Any]) -> str:
    """The record as one line of JSON, newline included."""
    return json.dumps({key: _finite_or_none(value) for key, value in record.items()}, allow_nan=False) + "\n"


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The file's records in order; lines that are torn (the run was killed while it wrote) are left out."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    records = [_record_or_none(line) for line in lines if line.strip()]
    whole = [record for record in records if record is not None]
    if len(whole) < len(records):
        logger.warning("%s: left out %d torn line(s).", path, len(records) - len(whole))
    return whole


def cut_back_to_step(path: Path, optimizer_step: int) -> list[dict[str, Any]]:
    """Removes, in one atomic move, every record after `optimizer_step` and every torn line; what is left."""
    if not path.exists():
        return []
    kept = [record for record in read_records(path) if record["global_step"] <= optimizer_step]
    replace_file(path, "".join(to_line(record) for record in kept))
    return kept


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record_or_none(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "global_step" in record else None
