"""Preemption: SIGTERM and SIGUSR1 ask the run to save and leave; asking again means now.

What really arrives, where:

- torchrun: SIGTERM to torchrun goes on to every rank, which then has 30 s (`--shutdown-timeout`) until SIGKILL.
  torchrun itself ends with its own code, not with 75; SIGUSR1 kills it unless TORCHELASTIC_SIGNALS_TO_HANDLE names it.
- deepspeed: its `launch` process sends SIGTERM to one rank after another, each with 30 s until SIGKILL, and ends
  with 1; the `deepspeed` command itself passes nothing on. A signal to any rank is enough here, since all ranks agree.
- srun: every rank gets the signal, and srun ends with 75.

A launcher and a scheduler often both pass on the same signal: within two seconds it counts as one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from openrlhf.exit_codes import EXIT_CODE_PREEMPTED, PREEMPTION_SIGNALS

SECONDS_OF_ONE_REQUEST = 2.0


class Preempted(SystemExit):
    """The run was asked to leave, and has saved; a scheduler can start it again with `--ckpt.load_enable`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE_PREEMPTED)


class PreemptionRequest:
    """While it lasts, remembers that this process was asked to leave."""

    def __init__(self) -> None:
        self._made_at: float | None = None
        self._previous: dict[int, Any] = {}

    @property
    def is_made(self) -> bool:
        return self._made_at is not None

    def __enter__(self) -> PreemptionRequest:
        is_main_thread = threading.current_thread() is threading.main_thread()  # Python lets no other one listen
        for number in PREEMPTION_SIGNALS if is_main_thread else ():
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._made_at is None:
            self._made_at = time.monotonic()
        elif time.monotonic() - self._made_at > SECONDS_OF_ONE_REQUEST:
            os._exit(EXIT_CODE_PREEMPTED)
