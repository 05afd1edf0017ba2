"""Answers of a model to prompts: `python -m openrlhf.cli.generate FLAGS` (or torchrun -m: ranks share the prompts)."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import leave_when_asked, run_command
from openrlhf.config import GenerateConfig, parse_config


def main(argv: Sequence[str]) -> None:
    config = parse_config(GenerateConfig, argv)
    from openrlhf.rejection.generate import generate  # after the flags are known to be right: it loads torch

    generate(config)


if __name__ == "__main__":
    leave_when_asked()
    run_command(main)
