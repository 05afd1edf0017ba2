"""Rejection sampling, all stages in turn: `python -m openrlhf.cli.rejection_sampling @ recipe.toml`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import leave_when_asked, run_command
from openrlhf.config import RejectionConfig, parse_config


def main(argv: Sequence[str]) -> None:
    config = parse_config(RejectionConfig, argv)
    from openrlhf.rejection.iterate import rejection_sampling  # after the flags are known to be right: it loads torch

    rejection_sampling(config)


if __name__ == "__main__":
    leave_when_asked()
    run_command(main)
