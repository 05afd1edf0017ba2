"""Facts and samples shown: printed in a terminal, or as one HTML file that needs nothing beside it."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from openrlhf.atomic_file import replace_file
from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.inspection.statistics import Statistics, facts_of

TARGET, SPECIAL_TARGET, SPECIAL, CONTEXT = "bold green", "bold black on green", "magenta", "dim"
WEIGHT = "yellow"
VISIBLE = str.maketrans({"\t": "⇥", "\r": "␍", "\x00": "␀", "\x1b": "␛"})
DRAWN = ("tokens a sample", "targets a sample")  # shown beside the page's histogram
MAX_ROWS = 200
MAX_PIECES = 4000  # of one row; longer rows are cut on the page, and say so
MAX_TOKENS_A_CHARACTER = 8
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """The text of one token (of several, where one character takes several).

    Attributes:
        first: index of its first token in the sample.
        token_ids: its tokens.
        weight: entry `first - 1` of the loss mask; above 0 the piece is trained.
        is_special: a special token, such as the end token.
    """

    text: str
    first: int
    token_ids: list[int]
    weight: float
    is_special: bool

    @property
    def is_target(self) -> bool:
        return self.weight > 0


def pieces_of(dataset: SFTDataset, tokenizer: Any, index: int) -> list[Piece]:
    """The pieces of a sample, in order."""
    input_ids, _, loss_mask = (tensor.tolist() for tensor in dataset[index])
    weights = [0, *loss_mask[:-1]]
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    pieces, start = [], 0
    while start < len(input_ids):
        end = _end_of_character(tokenizer, input_ids, weights, start)
        ids = input_ids[start:end]
        pieces.append(Piece(_decode(tokenizer, ids), start, ids, weights[start], ids[0] in specials))
        start = end
    return pieces


def _end_of_character(tokenizer: Any, ids: list[int], weights: list[float], start: int) -> int:
    """The end of the shortest run of tokens that is whole text; one token if there is none."""
    for end in range(start + 1, min(start + MAX_TOKENS_A_CHARACTER, len(ids)) + 1):
        if weights[end - 1] != weights[start]:
            break
        if REPLACEMENT not in _decode(tokenizer, ids[start:end]):
            return end
    return start + 1


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def show(console: Console, dataset: SFTDataset, tokenizer: Any, statistics: Statistics, num_rows: int) -> None:
    """Prints the facts, then `num_rows` samples as the first step trains them."""
    console.print(_table(dataset, statistics))
    console.print(_legend())
    shown = 0
    for micro_step, ranks in enumerate(statistics.first_step):
        for rank, samples in enumerate(ranks):
            if not samples or shown >= num_rows:
                continue
            console.print(
                Rule(f"step 1, micro-batch {micro_step + 1}, rank {rank}: {len(samples)} samples", style="cyan")
            )
            for number in samples[: num_rows - shown]:
                _show_sample(console, dataset, tokenizer, number)
                shown += 1


def _table(dataset: SFTDataset, statistics: Statistics) -> Table:
    table = Table(title="What will be trained", show_header=False, title_style="bold")
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for name, value in facts_of(dataset.report, statistics):
        table.add_row(name, Text(value))
    return table


def _legend() -> Text:
    return Text.assemble(
        ("target", TARGET), "  ", ("end of a turn, trained", SPECIAL_TARGET), "  ",
        ("special, not trained", SPECIAL), "  ", ("context, not trained", CONTEXT),
    )  # fmt: skip


def _show_sample(console: Console, dataset: SFTDataset, tokenizer: Any, number: int) -> None:
    tokens, targets = int(dataset.num_tokens[number]), int(dataset.num_target_tokens[number])
    weight = dataset.row_weight(number)
    note = "" if weight == 1 else f" · weight {weight:g}"
    console.print(Text(f"── {dataset.sample_name(number)} · {tokens} tokens, {targets} targets{note}", style="cyan"))
    console.print(_coloured(pieces_of(dataset, tokenizer, number), has_colours=console.color_system is not None))


def _coloured(pieces: list[Piece], has_colours: bool) -> Text:
    """The sample's text; without colours, targets stand between ⟦ and ⟧. Their weight follows, unless it is 1."""
    text = Text()
    for weight, run in itertools.groupby(pieces, key=lambda piece: piece.weight):
        opening, closing = ("⟦", "⟧") if weight and not has_colours else ("", "")
        text.append(opening)
        for piece in run:
            text.append(piece.text.translate(VISIBLE).replace("\n", "⏎\n"), style=_style(piece))
        text.append(closing)
        if weight not in (0, 1):
            text.append(f"×{weight:g}", style=WEIGHT)
    return text


def _style(piece: Piece) -> str:
    if piece.is_special:
        return SPECIAL_TARGET if piece.is_target else SPECIAL
    return TARGET if piece.is_target else CONTEXT


def write_page(path: Path, dataset: SFTDataset, tokenizer: Any, statistics: Statistics) -> None:
    """Writes the page: facts, histogram, and up to `MAX_ROWS` rows spread over the data set."""
    numbers = np.unique(np.linspace(0, len(dataset) - 1, MAX_ROWS).astype(int)).tolist()
    content = {
        "title": ", ".join(source.name for source in dataset.report.sources),
        "facts": [fact for fact in facts_of(dataset.report, statistics) if fact[0] not in DRAWN],
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
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
