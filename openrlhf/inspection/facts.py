"""The table of facts, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from openrlhf.datasets.report import DataReport
from openrlhf.inspection.statistics import Statistics


class Fact(NamedTuple):
    """A name and its value, as people read them."""

    name: str
    value: str


def facts_of(report: DataReport, statistics: Statistics) -> list[Fact]:
    """All facts about the data and the steps made of it."""
    return [*_about_rows(report), *_about_tokens(report, statistics), *_about_steps(statistics)]


def _about_rows(report: DataReport) -> Iterator[Fact]:
    yield Fact("rows", f"{report.num_rows:,}")
    if len(report.sources) > 1:
        for source in report.sources:
            yield Fact(f"  {source.name}", f"{source.num_samples:,} kept of {source.num_rows_taken:,} taken")
    yield Fact("format", ", ".join(sorted({name for source in report.sources for name in source.formats})))
    yield Fact("kept", f"{report.num_samples:,}")
    for reason, count in sorted(report.left_out.items()):
        yield Fact(f"left out: {reason}", f"{count:,}")
    if report.num_bad_rows:
        yield Fact("left out: unusable", f"{report.num_bad_rows:,}\n" + "\n".join(report.bad_rows))
    if report.num_weighted:
        yield Fact("samples weighted other than 1", f"{report.num_weighted:,}")
    if report.num_cut:
        yield Fact("cut at max_len", f"{report.num_cut:,}")


def _about_tokens(report: DataReport, statistics: Statistics) -> Iterator[Fact]:
    yield Fact("tokens", f"{statistics.num_tokens:,}")
    yield Fact("target tokens", f"{statistics.num_target_tokens:,} ({statistics.target_share:.1%} of the tokens)")
    yield Fact("tokens a sample", _percentiles(statistics.length_percentiles))
    yield Fact("targets a sample", _percentiles(statistics.target_percentiles))
    if report.turn_end is not None:
        yield Fact("answers end with", repr(report.turn_end))
    for note in report.notes:
        yield Fact("note", note)


def _about_steps(statistics: Statistics) -> Iterator[Fact]:
    yield Fact("steps", f"{statistics.steps_per_epoch:,} an epoch, {statistics.num_steps:,} in all")
    yield Fact("tokens a step", f"{statistics.tokens_per_step:,.0f} over all ranks")
    yield Fact("micro-batches a step", f"{statistics.micro_batches_per_step:.1f} on each rank")
    yield Fact("padding", f"{1 - statistics.useful_share:.1%} of the computed positions")
    if statistics.fill_share is not None:
        yield Fact("packing efficiency", f"{statistics.fill_share:.1%} of the token budget is filled")


def _percentiles(values: dict[int, int]) -> str:
    names = {0: "least", 50: "median", 100: "most"}
    return ", ".join(f"{names.get(percent, f'{percent}%')} {value:,}" for percent, value in values.items())
