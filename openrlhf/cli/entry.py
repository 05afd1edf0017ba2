"""How every command begins and ends: what the user can mend is told in words, once; exit codes as documented."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from openrlhf.errors import UserError
from openrlhf.exit_codes import (
    EXIT_CODE_PREEMPTED,
    EXIT_CODE_STOPPED,
    EXIT_CODE_USER_ERROR,
    PREEMPTION_SIGNALS,
    RunStopped,
)


def run_command(command: Callable[[Sequence[str]], None]) -> None:
    """Runs `command` with the words of the command line; a UserError ends the process with 2, a RunStopped with 3."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        command(sys.argv[1:])
    except UserError as error:
        _tell(error.problems)
        sys.exit(EXIT_CODE_USER_ERROR)
    except RunStopped as error:
        _tell(str(error).splitlines())
        sys.exit(EXIT_CODE_STOPPED)


def leave_when_asked() -> None:
    """Until training begins, and after it, there is nothing to save: a signal that asks to leave ends the process."""
    for number in PREEMPTION_SIGNALS:
        signal.signal(number, lambda *_: os._exit(EXIT_CODE_PREEMPTED))


def _tell(problems: Sequence[str]) -> None:
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(["error:", *(f"  {problem}" for problem in problems)]), file=sys.stderr, flush=True)
