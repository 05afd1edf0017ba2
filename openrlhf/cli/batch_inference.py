"""OpenRLHF's command up to 0.9.5, in one sentence: what it did is done by other commands here."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import run_command
from openrlhf.errors import UserError


def main(argv: Sequence[str]) -> None:
    raise UserError(
        "batch_inference is not here. Its --eval_task generate and generate_vllm are python -m openrlhf.cli.generate, "
        "its rm is python -m openrlhf.cli.score, and the choice of the best answers python -m openrlhf.cli.select; "
        "python -m openrlhf.cli.rejection_sampling runs all of them in turn (docs/rejection_sampling.md)."
    )


if __name__ == "__main__":
    run_command(main)
