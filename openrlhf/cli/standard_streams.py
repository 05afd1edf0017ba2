"""Standard streams that last: a closed pipe or a full disk behind them costs what is said, not the run."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from contextlib import suppress
from typing import Any


class LastingStream:
    """A stream of text whose writes never fail. Behind a closed pipe nothing more is written."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def end(self) -> None:
        """What still waits for a full disk is given up: the interpreter would fail over it at its end."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def _try(self, action: Any) -> None:
        try:
            action()
        except BrokenPipeError:
            self._discard()
        except (OSError, ValueError):  # a full disk; a stream that was closed
            return

    def _discard(self) -> None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_standard_streams_last() -> None:
    """From now on for `sys.stdout` and `sys.stderr`, and for log lines."""
    for number in range(3):  # a file opened later must not get the number of a stream that the shell has closed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    logging.raiseExceptions = False
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, LastingStream):
            lasting = LastingStream(os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") if stream is None else stream)
            setattr(sys, name, lasting)
            atexit.register(lasting.end)
