"""A whole run with a secret among its words; runs inside a rank."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from unittest.mock import patch


def run_with_words(argv: list[str]) -> tuple[str | None, str]:
    """`python -m openrlhf.cli.train_sft argv`; W&B's key at the end of the run, and all that was printed."""
    from openrlhf.cli.train_sft import main

    printed = io.StringIO()
    with (
        patch.dict(os.environ, WANDB_MODE="offline"),
        patch.object(sys, "argv", ["train_sft", *argv]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        os.environ.pop("WANDB_API_KEY", None)
        main(argv)
        return os.environ.get("WANDB_API_KEY"), printed.getvalue()
