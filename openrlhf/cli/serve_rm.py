"""A reward model behind HTTP: `python -m openrlhf.cli.serve_rm --reward.model_name_or_path M --port P`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import run_command
from openrlhf.config import ServeConfig, parse_config


def main(argv: Sequence[str]) -> None:
    config = parse_config(ServeConfig, argv)
    from openrlhf.rejection.reward_server import serve  # after the flags are known to be right: it loads torch

    serve(config)


if __name__ == "__main__":
    run_command(main)
