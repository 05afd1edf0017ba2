"""How every command begins and ends: a user's error is told in words, once, with exit code 2."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from openrlhf.errors import UserError

EXIT_CODE_USER_ERROR = 2


def run_command(command: Callable[[Sequence[str]], None]) -> None:
    """Runs `command` with the words of the command line; ends the process with code 2 on a UserError."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        command(sys.argv[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print("\n".join(["error:", *(f"  {problem}" for problem in error.problems)]), file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE_USER_ERROR)
