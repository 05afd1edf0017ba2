"""An exported model to the hub: `python -m openrlhf.cli.push --ckpt.output_dir out --hub.model_id owner/name`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import run_command
from openrlhf.config import parse_config
from openrlhf.config.hub_settings import PushConfig


def main(argv: Sequence[str]) -> None:
    config = parse_config(PushConfig, argv)
    from openrlhf.run.push import push_folder  # after the flags are known to be right

    hub = config.hub
    address = push_folder(config.ckpt.output_dir, hub.model_id or "", private=hub.private, revision=hub.revision)
    print(f"{config.ckpt.output_dir} is at {address}.")


if __name__ == "__main__":
    run_command(main)
