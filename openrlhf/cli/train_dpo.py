"""DPO and its family: `deepspeed --module openrlhf.cli.train_dpo FLAGS` (or torchrun -m, or python -m)."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import loading, run_training
from openrlhf.config import DPOConfig, parse_config


def main(argv: Sequence[str]) -> None:
    config = parse_config(DPOConfig, argv)
    with loading():  # after the flags are known to be right: it loads torch and transformers
        from openrlhf.run.dpo_run import DPORun

    DPORun.train(config)


if __name__ == "__main__":
    run_training(main)
