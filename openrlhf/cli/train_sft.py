"""Supervised fine-tuning: `deepspeed --module openrlhf.cli.train_sft FLAGS` (or torchrun -m, or python -m)."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import leave_when_asked, run_command
from openrlhf.config import SFTConfig, parse_config


def main(argv: Sequence[str]) -> None:
    config = parse_config(SFTConfig, argv)
    train(config)


def train(config: SFTConfig) -> None:
    """One run, from data to exported model."""
    from openrlhf.run.sft_run import SFTRun  # after the flags are known to be right: it loads torch and transformers

    run = SFTRun.prepare_data(config)
    run.strategy.setup_distributed()
    with run.strategy.watchdog, run.owning_folders():
        run.check_ranks()
        if not run.has_finished():
            run.build()
            run.resume()
            run.fit_and_export()


if __name__ == "__main__":
    leave_when_asked()
    run_command(main)
    from openrlhf.engine.launch import leave_ranks

    leave_ranks()  # here and not in `train`: DeepSpeed keeps its groups for the next run of a process
