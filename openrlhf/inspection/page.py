"""The look inside as one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf.atomic_file import replace_file
from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.inspection.facts import facts_of
from openrlhf.inspection.pieces import pieces_of
from openrlhf.inspection.statistics import Statistics

DRAWN = ("tokens a sample", "targets a sample")  # shown beside the histogram
MAX_ROWS = 200
MAX_PIECES = 4000  # of one row; longer rows are cut on the page, and say so


def write_page(path: Path, dataset: SFTDataset, tokenizer: Any, statistics: Statistics) -> None:
    """Writes the page: facts, histogram, and up to `MAX_ROWS` rows spread over the data set."""
    numbers = np.unique(np.linspace(0, len(dataset) - 1, MAX_ROWS).astype(int)).tolist()
    content = {
        "title": ", ".join(source.name for source in dataset.report.sources),
        "facts": [fact for fact in facts_of(dataset.report, statistics) if fact.name not in DRAWN],
        "histogram": {"edges": statistics.bin_edges, "counts": statistics.bin_counts},
        "percentiles": [
            [percent, length, statistics.target_percentiles[percent]]
            for percent, length in statistics.length_percentiles.items()
        ],
        "num_samples": len(dataset),
        "rows": [_row(dataset, tokenizer, number) for number in numbers],
    }
    frame = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, frame.replace("/*CONTENT*/null", _as_script(content)))


def _row(dataset: SFTDataset, tokenizer: Any, number: int) -> dict[str, Any]:
    pieces = pieces_of(dataset, tokenizer, number)
    return {
        "number": number,
        "name": dataset.sample_name(number),
        "num_tokens": int(dataset.num_tokens[number]),
        "num_targets": int(dataset.num_target_tokens[number]),
        "weight": _short(dataset.row_weight(number)),
        "is_cut": len(pieces) > MAX_PIECES,
        "pieces": [
            [piece.text, piece.first, piece.token_ids, _short(piece.weight), int(piece.is_special)]
            for piece in pieces[:MAX_PIECES]
        ],
    }


def _short(weight: float) -> float:
    """A float32 as people wrote it."""
    return float(f"{weight:g}")


def _as_script(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
