"""What a script writes of its results beside the model: metrics by split, all of them together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openrlhf.atomic_file import replace_file


def print_metrics(split: str, metrics: dict[str, Any]) -> None:
    """A line for each number, as transformers' scripts print them."""
    widest = max(map(len, metrics), default=0)
    print(f"***** {split} metrics *****")
    for name in sorted(metrics):
        value = metrics[name]
        print(f"  {name:{widest}} = {f'{value:.4f}' if isinstance(value, float) else value}", flush=True)


def write_metrics(folder: Path, split: str, metrics: dict[str, Any], combined: bool) -> None:
    """`<split>_results.json`; with `combined` also `all_results.json`, which keeps what other splits have there."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{split}_results.json", metrics)
    if combined:
        path = folder / "all_results.json"
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        _write(path, earlier | metrics)


def _write(path: Path, metrics: dict[str, Any]) -> None:
    replace_file(path, json.dumps(metrics, indent=4, sort_keys=True) + "\n")
