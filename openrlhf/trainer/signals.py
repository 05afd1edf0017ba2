"""Preemption: SIGTERM and SIGUSR1 ask the run to save and leave; a second signal means now."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE_PREEMPTED = 75
"""Exit code of a run that saved and left on a signal (EX_TEMPFAIL of sysexits.h: try again later)."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """The run was asked to leave, and has saved; a scheduler can start it again with `--ckpt.load_enable`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE_PREEMPTED)


class PreemptionRequest:
    """While it lasts, remembers that this process was asked to leave. Only a main thread is ever asked."""

    def __init__(self) -> None:
        self.is_made = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> PreemptionRequest:
        is_main_thread = threading.current_thread() is threading.main_thread()
        for number in _SIGNALS if is_main_thread else ():
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_made:
            os._exit(EXIT_CODE_PREEMPTED)
        self.is_made = True
