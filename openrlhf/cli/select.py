"""The answers to train on, by their rewards: `python -m openrlhf.cli.select FLAGS`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import run_command
from openrlhf.config import SelectConfig, parse_config


def main(argv: Sequence[str]) -> None:
    config = parse_config(SelectConfig, argv)
    from openrlhf.rejection.select import select

    select(config)


if __name__ == "__main__":
    run_command(main)
