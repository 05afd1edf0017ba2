"""The memory that a training needs, from a model's config alone: `python -m openrlhf.cli.estimate_memory FLAGS`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import run_command
from openrlhf.config import parse_config
from openrlhf.config.estimate_settings import EstimateConfig


def main(argv: Sequence[str]) -> None:
    config = parse_config(EstimateConfig, argv)
    from openrlhf.run.memory_table import print_memory_table

    print_memory_table(config)


if __name__ == "__main__":
    run_command(main)
