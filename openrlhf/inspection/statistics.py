"""Numbers about prepared samples and the steps made of them, and how people read them: in the terminal, on the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from openrlhf.batching import FixedSize, StepSchedule, TokenBudget
from openrlhf.datasets.pair_dataset import PairDataset
from openrlhf.datasets.sft_dataset import SFTDataset

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
NUM_BINS = 40
MAX_WINDOWS = 64  # layouts of so many steps, spread over the epoch, stand for all


@dataclass(frozen=True)
class Statistics:
    """Numbers to know before a machine is rented, beside those of the data's report; lengths are in tokens.

    Each side of a pair has a length; a sample in the other numbers is a pair.

    Attributes:
        useful_share: share of computed positions that hold a token (the rest is padding).
        fill_share: how full the token budget of a micro-batch is; None without a budget.
        first_step: sample numbers, `first_step[micro_step][rank]`.
    """

    length_percentiles: dict[int, int]
    target_percentiles: dict[int, int]
    bin_edges: list[int]
    bin_counts: list[int]
    steps_per_epoch: int
    num_steps: int
    tokens_per_step: float
    micro_batches_per_step: float
    useful_share: float
    fill_share: float | None
    first_step: list[list[list[int]]]


def statistics_of(
    dataset: SFTDataset | PairDataset,
    layout: FixedSize | TokenBudget,
    *,
    batch_size: int,
    packed: bool,
    num_data_ranks: int,
    seed: int,
    max_epochs: int,
    max_steps: int | None = None,
) -> Statistics:
    """Statistics of a data set under batch settings.

    Args:
        layout: micro-batches of a step.
        batch_size: samples or pairs an optimizer step, over all ranks.
        packed: samples stand behind one another, without padding.
        num_data_ranks: ranks that share a step's samples.
    """
    lengths = _of_sides(dataset, dataset.samples.num_tokens)
    schedule = StepSchedule(len(dataset), batch_size, seed)
    steps = np.unique(np.linspace(0, schedule.steps_per_epoch - 1, MAX_WINDOWS).astype(int)).tolist()
    # laid_out[step][micro_step][rank]: sample numbers.
    laid_out = []
    for step in steps:
        rows = schedule.window(0, step).rows
        units = lengths[rows, 0] if lengths.shape[1] == 1 else list(map(tuple, lengths[rows].tolist()))
        places = layout(units, num_data_ranks)
        laid_out.append([[rows[list(of_rank)].tolist() for of_rank in micro_step] for micro_step in places])
    micro_batches = [
        lengths[samples] for window in laid_out for micro_step in window for samples in micro_step if samples
    ]
    num_tokens = sum(int(one.sum()) for one in micro_batches)
    num_computed = sum(int(one.sum() if packed else one.max() * one.size) for one in micro_batches)
    budget = layout.max_tokens if isinstance(layout, TokenBudget) else None
    edges = np.unique(np.linspace(lengths.min(), lengths.max() + 1, NUM_BINS + 1).astype(int))
    return Statistics(
        length_percentiles=_percentiles(lengths),
        target_percentiles=_percentiles(dataset.samples.num_target_tokens),
        bin_edges=edges.tolist(),
        bin_counts=np.histogram(lengths, bins=edges)[0].tolist(),
        steps_per_epoch=schedule.steps_per_epoch,
        num_steps=schedule.num_steps(max_epochs, max_steps),
        tokens_per_step=float(lengths.sum() / schedule.steps_per_epoch),
        micro_batches_per_step=sum(map(len, laid_out)) / len(laid_out),
        useful_share=num_tokens / num_computed,
        fill_share=None if budget is None else num_tokens / (len(micro_batches) * budget),
        first_step=laid_out[0],
    )


def _of_sides(dataset: SFTDataset | PairDataset, numbers: np.ndarray) -> np.ndarray:
    """Numbers of samples on disk, a line for each row of the data set: one, or one for each side of a pair."""
    return np.asarray(numbers).reshape(len(dataset), -1)


def _percentiles(values: np.ndarray) -> dict[int, int]:
    found = np.percentile(values, PERCENTILES, method="nearest")
    return {percent: int(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def each_of(dataset: SFTDataset | PairDataset) -> str:
    """What has a length: a sample, or one side of a pair."""
    return "a prompt with an answer" if isinstance(dataset, PairDataset) else "a sample"


def facts_of(dataset: SFTDataset | PairDataset, statistics: Statistics) -> Iterator[tuple[str, str]]:
    """All facts about the data and the steps made of it, as names and values."""
    report, each = dataset.report, each_of(dataset)
    yield "rows", f"{report.num_rows:,}"
    if len(report.sources) > 1:
        for source in report.sources:
            yield f"  {source.name}", f"{source.num_samples:,} kept of {source.num_rows_taken:,} taken"
    yield "format", ", ".join(sorted({name for source in report.sources for name in source.formats}))
    yield "kept", f"{report.num_samples:,}"
    for reason, count in sorted(report.left_out.items()):
        yield f"left out: {reason}", f"{count:,}"
    if report.num_bad_rows:
        yield "left out: unusable", "\n".join([f"{report.num_bad_rows:,}", *report.bad_rows])
    for remark, count in sorted(report.remarks.items()):
        yield "rows to look at", f"{count:,}: {remark}"
    if report.num_weighted:
        yield f"{report.samples} weighted other than 1", f"{report.num_weighted:,}"
    if report.num_cut:
        yield "cut at max_len", f"{report.num_cut:,}"
    target_share = report.num_target_tokens / report.num_tokens
    yield "tokens", f"{report.num_tokens:,}"
    yield "target tokens", f"{report.num_target_tokens:,} ({target_share:.1%} of the tokens)"
    yield f"tokens {each}", _told(statistics.length_percentiles)
    yield f"targets {each}", _told(statistics.target_percentiles)
    if isinstance(dataset, PairDataset):
        yield from _facts_of_pairs(_of_sides(dataset, dataset.samples.num_target_tokens))
    if report.turn_end is not None:
        yield "answers end with", repr(report.turn_end)
    for note in report.notes:
        yield "note", note
    yield "steps", f"{statistics.steps_per_epoch:,} an epoch, {statistics.num_steps:,} in all"
    yield "tokens a step", f"{statistics.tokens_per_step:,.0f} over all ranks"
    yield "micro-batches a step", f"{statistics.micro_batches_per_step:.1f} on each rank"
    yield "padding", f"{1 - statistics.useful_share:.1%} of the computed positions"
    if statistics.fill_share is not None:
        yield "packing efficiency", f"{statistics.fill_share:.1%} of the token budget is filled"


def _facts_of_pairs(answers: np.ndarray) -> Iterator[tuple[str, str]]:
    """`answers`: targets of the chosen answer and of the rejected one, `(pairs, 2)`."""
    for side, name in enumerate(("chosen", "rejected")):
        told = _told(_percentiles(answers[:, side]))
        yield f"targets of the {name} answers", f"{told}; mean {answers[:, side].mean():,.1f}"
    longer, as_long = (answers[:, 0] > answers[:, 1]).mean(), (answers[:, 0] == answers[:, 1]).mean()
    yield "the longer answer is the chosen one", f"in {longer:.1%} of the pairs; in {as_long:.1%} both are as long"


def _told(percentiles: dict[int, int]) -> str:
    names = {0: "least", 50: "median", 100: "most"}
    return ", ".join(f"{names.get(percent, f'{percent}%')} {value:,}" for percent, value in percentiles.items())
