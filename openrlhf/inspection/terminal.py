"""The look inside for a terminal: a table, and the samples of the first step with their targets in colour."""

from __future__ import annotations

import itertools
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.inspection.facts import facts_of
from openrlhf.inspection.pieces import Piece, pieces_of
from openrlhf.inspection.statistics import Statistics

TARGET, SPECIAL_TARGET, SPECIAL, CONTEXT = "bold green", "bold black on green", "magenta", "dim"
WEIGHT = "yellow"
VISIBLE = str.maketrans({"\t": "⇥", "\r": "␍", "\x00": "␀", "\x1b": "␛"})


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
    for fact in facts_of(dataset.report, statistics):
        table.add_row(fact.name, Text(fact.value))
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
    console.print(_text(pieces_of(dataset, tokenizer, number), has_colours=console.color_system is not None))


def _text(pieces: list[Piece], has_colours: bool) -> Text:
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
