"""Shards that workers leave: one for each range of answers, whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from openrlhf.atomic_file import replace_file
from openrlhf.rejection.records import ROWS, line_of


def name_of_range(identities: Iterable[tuple[str | int, ...]]) -> str:
    """The name of the shard that holds just these answers."""
    return xxhash.xxh3_128(json.dumps(list(identities)).encode()).hexdigest()


def write_shard(folder: Path, name: str, rows: Iterable[Mapping[str, Any]], kind: str = ROWS) -> Path:
    """Leaves a shard with all its rows, or none. The first one of a name stays: its rows may have been read already."""
    path = folder / f"{kind}-{name}.jsonl"
    if not path.exists():
        replace_file(path, b"".join(map(line_of, rows)))
    return path
