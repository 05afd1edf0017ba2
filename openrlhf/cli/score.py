"""Rewards of answers: `python -m openrlhf.cli.score FLAGS`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import leave_when_asked, run_command
from openrlhf.config import ScoreConfig, parse_config


def main(argv: Sequence[str]) -> None:
    config = parse_config(ScoreConfig, argv)
    from openrlhf.rejection.score import score

    score(config)


if __name__ == "__main__":
    leave_when_asked()
    run_command(main)
