"""Numbers about prepared samples, and about the steps that given batch settings make of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from openrlhf.batching import FixedSize, StepSchedule, TokenBudget
from openrlhf.datasets.sft_dataset import SFTDataset

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
NUM_BINS = 40
MAX_WINDOWS = 64  # layouts of so many steps, spread over the epoch, stand for all


@dataclass(frozen=True)
class Batching:
    """The batch settings that steps are made by.

    Attributes:
        batch_size: samples an optimizer step, over all ranks.
        layout: micro-batches of a step.
        packed: samples stand behind one another, without padding.
        num_data_ranks: ranks that share a step's samples.
    """

    batch_size: int
    layout: FixedSize | TokenBudget
    packed: bool
    num_data_ranks: int
    seed: int
    max_epochs: int


@dataclass(frozen=True)
class Statistics:
    """Numbers to know before a machine is rented; lengths are in tokens."""

    num_samples: int
    num_tokens: int
    num_target_tokens: int
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
    first_step: list[list[list[int]]] = field(repr=False)

    @property
    def target_share(self) -> float:
        return self.num_target_tokens / self.num_tokens


def statistics_of(dataset: SFTDataset, batching: Batching) -> Statistics:
    """Statistics of a data set under batch settings.

    `useful_share` is the share of computed positions that hold a token (the rest is padding), `fill_share` how full
    the token budget of a micro-batch is, None without a budget. `first_step[micro_step][rank]` are sample numbers.
    """
    lengths, targets = np.asarray(dataset.num_tokens), np.asarray(dataset.num_target_tokens)
    schedule = StepSchedule(len(dataset), batching.batch_size, batching.seed)
    steps = np.unique(np.linspace(0, schedule.steps_per_epoch - 1, MAX_WINDOWS).astype(int)).tolist()
    windows = [schedule.window(0, step).rows for step in steps]
    layouts = [batching.layout(lengths[rows, None].tolist(), batching.num_data_ranks) for rows in windows]
    micro_batches = [
        lengths[rows[list(places)]]
        for rows, layout in zip(windows, layouts, strict=True)
        for micro_step in layout
        for places in micro_step
        if places
    ]
    edges = np.unique(np.linspace(lengths.min(), lengths.max() + 1, NUM_BINS + 1).astype(int))
    return Statistics(
        num_samples=len(dataset),
        num_tokens=int(lengths.sum(dtype=np.int64)),
        num_target_tokens=int(targets.sum(dtype=np.int64)),
        length_percentiles=_percentiles(lengths),
        target_percentiles=_percentiles(targets),
        bin_edges=edges.tolist(),
        bin_counts=np.histogram(lengths, bins=edges)[0].tolist(),
        steps_per_epoch=schedule.steps_per_epoch,
        num_steps=schedule.steps_per_epoch * batching.max_epochs,
        tokens_per_step=float(lengths.mean() * len(dataset) / schedule.steps_per_epoch),
        micro_batches_per_step=sum(len(layout) for layout in layouts) / len(layouts),
        useful_share=_useful_share(micro_batches, batching.packed),
        fill_share=_fill_share(micro_batches, batching.layout),
        first_step=_sample_numbers(windows[0], layouts[0]),
    )


def _percentiles(values: np.ndarray) -> dict[int, int]:
    found = np.percentile(values, PERCENTILES, method="nearest")
    return {percent: int(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def _useful_share(micro_batches: list[np.ndarray], packed: bool) -> float:
    computed = sum(int(one.sum() if packed else one.max() * len(one)) for one in micro_batches)
    return sum(int(one.sum()) for one in micro_batches) / computed


def _fill_share(micro_batches: list[np.ndarray], layout: FixedSize | TokenBudget) -> float | None:
    if isinstance(layout, FixedSize):
        return None
    return sum(int(one.sum()) for one in micro_batches) / (len(micro_batches) * layout.max_tokens)


def _sample_numbers(rows: np.ndarray, layout: list) -> list[list[list[int]]]:
    return [[[int(rows[place]) for place in places] for places in micro_step] for micro_step in layout]
