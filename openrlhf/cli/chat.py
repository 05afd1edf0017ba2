"""A conversation with a model: `python -m openrlhf.cli.chat --model.model_name_or_path M`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import leave_when_asked, run_command
from openrlhf.config import parse_config
from openrlhf.config.chat_settings import ChatConfig


def main(argv: Sequence[str]) -> None:
    config = parse_config(ChatConfig, argv)
    from openrlhf.rejection.chat import chat  # after the flags are known to be right: it loads torch

    chat(config)


if __name__ == "__main__":
    leave_when_asked()
    run_command(main)
