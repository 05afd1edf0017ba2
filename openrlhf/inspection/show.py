"""Facts and samples shown: printed in a terminal, or as one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from openrlhf.atomic_file import replace_file
from openrlhf.datasets.pair_dataset import PairDataset
from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.inspection.pieces import CONTEXT, DIFFERS, SPECIAL, SPECIAL_TARGET, TARGET, coloured
from openrlhf.inspection.samples import Part, parts_of, title_of
from openrlhf.inspection.statistics import Statistics, each_of, facts_of

MAX_ROWS = 200
MAX_PIECES = 4000  # of one part of a row; a longer one is cut on the page, and says so
DataSet = SFTDataset | PairDataset


def show(console: Console, dataset: DataSet, tokenizer: Any, statistics: Statistics, num_rows: int) -> None:
    """Prints the facts, then `num_rows` samples or pairs as the first step trains them."""
    console.print(_table(dataset, statistics))
    console.print(_legend(dataset))
    name = dataset.report.samples
    shown = 0
    for micro_step, ranks in enumerate(statistics.first_step):
        for rank, samples in enumerate(ranks):
            if not samples or shown >= num_rows:
                continue
            console.print(
                Rule(f"step 1, micro-batch {micro_step + 1}, rank {rank}: {len(samples)} {name}", style="cyan")
            )
            for number in samples[: num_rows - shown]:
                _show_sample(console, dataset, tokenizer, number)
                shown += 1


def _table(dataset: DataSet, statistics: Statistics) -> Table:
    table = Table(title="What will be trained", show_header=False, title_style="bold")
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for name, value in facts_of(dataset, statistics):
        table.add_row(name, Text(value))
    return table


def _legend(dataset: DataSet) -> Text:
    of_pairs = [("not in the other answer", DIFFERS)] if isinstance(dataset, PairDataset) else []
    return Text("  ").join(
        Text(*word) for word in (
            ("target", TARGET), ("end of a turn, trained", SPECIAL_TARGET), ("special, not trained", SPECIAL),
            ("context, not trained", CONTEXT), *of_pairs,
        )
    )  # fmt: skip


def _show_sample(console: Console, dataset: DataSet, tokenizer: Any, number: int) -> None:
    console.print(Text(f"── {title_of(dataset, number)}", style="cyan"))
    for part in parts_of(dataset, tokenizer, number):
        if part.name:
            console.print(Text(f"{part.name}:", style="cyan"))
        console.print(coloured(part.pieces, has_colours=console.color_system is not None))


def write_page(path: Path, dataset: DataSet, tokenizer: Any, statistics: Statistics) -> None:
    """Writes the page: facts, histogram, and up to `MAX_ROWS` rows spread over the data set."""
    each = each_of(dataset)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, MAX_ROWS).astype(int)).tolist()
    content = {
        "title": ", ".join(source.name for source in dataset.report.sources),
        # The others are shown beside the histogram.
        "facts": [fact for fact in facts_of(dataset, statistics) if not fact[0].endswith(each)],
        "each": each,
        "of_pairs": isinstance(dataset, PairDataset),
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


def _row(dataset: DataSet, tokenizer: Any, number: int) -> dict[str, Any]:
    parts = parts_of(dataset, tokenizer, number)
    return {
        "title": title_of(dataset, number),
        "is_cut": any(len(part.pieces) > MAX_PIECES for part in parts),
        "parts": [[part.name, _pieces(part)] for part in parts],
    }


def _pieces(part: Part) -> list[list[Any]]:
    return [
        [piece.text, piece.first, piece.token_ids, _short(piece.weight), int(piece.is_special), int(piece.differs)]
        for piece in part.pieces[:MAX_PIECES]
    ]


def _short(weight: float) -> float:
    """A float32 as people wrote it."""
    return float(f"{weight:g}")


def _as_script(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
