"""A look at what is trained: `python -m openrlhf.cli.inspect_data FLAGS [--html report.html] [--show 4]`.

Takes the flags of training, needs the tokenizer alone: no GPU, no weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf.cli.entry import run_command
from openrlhf.config import SFTConfig, parse_sft_config
from openrlhf.errors import UserError

if TYPE_CHECKING:
    from openrlhf.inspection.statistics import Batching

DEFAULT_NUM_SHOWN = 4


def main(argv: Sequence[str]) -> None:
    words, html = _take(list(argv), "--html")
    words, show = _take(words, "--show")
    inspect(parse_sft_config(words, trains=False), None if html is None else Path(html), _count(show))


def inspect(config: SFTConfig, html: Path | None, num_shown: int) -> None:
    """Prepares the data as a training would (and leaves it in the cache for it), and shows it."""
    from rich.console import Console

    from openrlhf.inspection.page import write_page
    from openrlhf.inspection.statistics import statistics_of
    from openrlhf.inspection.terminal import show
    from openrlhf.run.builders import build_tokenizer, build_train_data

    tokenizer = build_tokenizer(config)
    dataset = build_train_data(config, tokenizer)
    statistics = statistics_of(dataset, _batching(config))
    console = Console(highlight=False)
    show(console, dataset, tokenizer, statistics, num_shown)
    if html is not None:
        write_page(html, dataset, tokenizer, statistics)
        console.print(f"wrote {html}", soft_wrap=True)


def _batching(config: SFTConfig) -> Batching:
    from openrlhf.batching import FixedSize, TokenBudget
    from openrlhf.inspection.statistics import Batching

    budget, packed = config.train.max_tokens_per_micro_batch, config.ds.packing_samples
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return Batching(
        batch_size=config.train.batch_size,
        layout=TokenBudget(budget, packed) if budget else FixedSize(config.train.micro_batch_size),
        packed=packed,
        num_data_ranks=max(1, world_size // (config.ds.ring_attn_size * config.ds.tensor_parallel_size)),
        seed=config.train.seed,
        max_epochs=config.train.max_epochs,
    )


def _take(words: list[str], flag: str) -> tuple[list[str], str | None]:
    """The words without a flag of this command's own, and its value."""
    for place, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return words[:place] + words[place + 1 :], word.partition("=")[2]
        if word == flag:
            if place + 1 == len(words):
                raise UserError(f"{flag} needs a value.")
            return words[:place] + words[place + 2 :], words[place + 1]
    return words, None


def _count(text: str | None) -> int:
    if text is None:
        return DEFAULT_NUM_SHOWN
    if not text.isdigit():
        raise UserError(f"--show {text!r}: give how many rows to show.")
    return int(text)


if __name__ == "__main__":
    run_command(main)
