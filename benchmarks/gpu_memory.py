"""The GPU's memory while a process runs, seen from outside: the same for every contestant."""

from __future__ import annotations

import shutil
import subprocess
import threading
from types import TracebackType

_SECONDS_BETWEEN_LOOKS = 0.25


def total_bytes() -> int | None:
    """Of the first GPU; None where there is none."""
    return _ask("memory.total")


class PeakMemory:
    """`with PeakMemory() as peak: ...`, then `peak.bytes`: the most that nvidia-smi saw in use, four looks a second.

    It counts what the processes hold, torch's spare blocks included. None where there is no GPU.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._must_stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while (used := _ask("memory.used")) is not None:
            self.bytes = max(self.bytes or 0, used)
            if self._must_stop.wait(_SECONDS_BETWEEN_LOOKS):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._must_stop.set()
        self._thread.join()


def _ask(what: str) -> int | None:
    if shutil.which("nvidia-smi") is None:
        return None
    words = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(words, capture_output=True, text=True)
    return int(done.stdout.strip()) * 2**20 if done.returncode == 0 and done.stdout.strip().isdigit() else None
