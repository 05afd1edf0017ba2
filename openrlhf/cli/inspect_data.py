"""A look at what is trained: `python -m openrlhf.cli.inspect_data FLAGS [--html report.html] [--show 4]`.

Takes the flags of train_sft, train_rm or train_dpo, needs the tokenizer alone: no GPU, no weights. Rows are shown as
pairs where a flag is of these, or where their columns are those of pairs and of nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf.cli.entry import run_command
from openrlhf.config import InspectConfig, InspectDPOConfig, nearest_root, parse_config
from openrlhf.config.roots import INSPECTIONS, AnyInspection


def main(argv: Sequence[str]) -> None:
    config = parse_config(nearest_root(INSPECTIONS, argv), argv)
    inspect(parse_config(InspectDPOConfig, argv) if _holds_pairs(config) else config)


def _holds_pairs(config: AnyInspection) -> bool:
    """Whether rows that were not said to be pairs are."""
    from openrlhf.datasets.pair_dataset import holds_pairs

    return isinstance(config, InspectConfig) and not config.model.pretrain_mode_enable and holds_pairs(config.data)


def inspect(config: AnyInspection) -> None:
    """Prepares the data as a training would (and leaves it in the cache for it), and shows it."""
    from rich.console import Console

    from openrlhf.datasets import prepare_pair_dataset
    from openrlhf.inspection.show import show, write_page
    from openrlhf.inspection.statistics import statistics_of
    from openrlhf.run.builders import build_tokenizer, build_train_data
    from openrlhf.run.sft_run import SFTRun

    tokenizer = build_tokenizer(config)
    prepare = SFTRun.preparation(config) if isinstance(config, InspectConfig) else prepare_pair_dataset
    dataset = build_train_data(config, tokenizer, prepare)
    statistics = statistics_of(dataset, **_batching(config, dataset))
    console = Console(highlight=False)
    show(console, dataset, tokenizer, statistics, config.show)
    if config.html is not None:
        write_page(Path(config.html), dataset, tokenizer, statistics)
        console.print(f"wrote {config.html}", soft_wrap=True)


def _batching(config: AnyInspection, dataset: Any) -> dict[str, Any]:
    """How `statistics_of` makes steps."""
    from openrlhf.batching import layout_of
    from openrlhf.run.layout_choice import roomy_layout

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config = roomy_layout(config, dataset, world_size)
    train, ds = config.train, config.ds
    layout = layout_of(train.micro_batch_size, train.max_tokens_per_micro_batch, ds.ring_attn_size, ds.packing_samples)
    return {
        "layout": layout,
        "batch_size": train.batch_size,
        "packed": ds.packing_samples,
        "num_data_ranks": max(1, world_size // (ds.ring_attn_size * ds.tensor_parallel_size)),
        "seed": train.seed,
        "max_epochs": train.max_epochs,
        "max_steps": train.max_steps,
    }


if __name__ == "__main__":
    run_command(main)
