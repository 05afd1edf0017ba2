"""Work beside the training loop: one thread at a time, whose error is kept until somebody asks.

No collective runs in such a thread: it could meet one of training's in another order on another rank. Ranks
tell the thread of rank 0 that their files are written by a small file each (`RankReport`); every other
agreement between ranks is made by the main threads, in `checkpointer.py`.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

from openrlhf.checkpoint.durable import replace_text
from openrlhf.checkpoint.manifest import FileRecord

_POLL_SECONDS = 0.02
_NICENESS = 7

Result = TypeVar("Result")


class BackgroundJob(Generic[Result]):
    """A function running in a thread of its own, behind whatever else wants the processor.

    The interpreter does not end before it.
    """

    def __init__(self, function: Callable[[], Result], name: str):
        self._function = function
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def _run(self) -> None:
        _step_back()
        try:
            self._result = self._function()
        except BaseException as error:  # kept, and given to whoever waits
            self._error = error

    def wait(self) -> tuple[Result | None, str | None]:
        """Wait for the end; the result, or what went wrong."""
        self._thread.join()
        if self._error is not None:
            return None, f"{type(self._error).__name__}: {self._error}"
        return self._result, None


def _step_back() -> None:
    """Lets this thread take about a sixth of a core from threads that compute; of an idle one it takes all."""
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@dataclass(frozen=True)
class RankReport:
    """What a rank leaves in the folder when its part of a save has ended: its files, or what went wrong."""

    records: list[FileRecord]
    problem: str | None = None

    def leave(self, folder: Path, rank: int) -> None:
        """Put the report there, whole or not at all."""
        replace_text(_report_path(folder, rank), json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path, rank: int) -> "RankReport | None":
        """None while it is not there."""
        try:
            values = json.loads(_report_path(folder, rank).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls([FileRecord(**record) for record in values["records"]], values["problem"])


def collect_reports(
    folder: Path, num_ranks: int, must_stop: Callable[[], bool], timeout_seconds: float
) -> list[FileRecord]:
    """Wait for the reports of all ranks, remove them, and return the records of all files.

    Raises OSError as soon as a rank reports a problem, when `must_stop()`, or after `timeout_seconds` (naming
    the ranks that are missing).
    """
    reports: dict[int, RankReport] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(reports) < num_ranks:
        for rank in set(range(num_ranks)) - reports.keys():
            report = RankReport.read(folder, rank)
            if report is not None:
                reports[rank] = report
        failed = {rank: report.problem for rank, report in reports.items() if report.problem}
        if failed:
            raise OSError("; ".join(f"rank {rank}: {problem}" for rank, problem in sorted(failed.items())))
        missing = sorted(set(range(num_ranks)) - reports.keys())
        if missing and must_stop():
            raise OSError("another rank could not write its part")
        if missing and time.monotonic() > deadline:
            raise OSError(f"ranks {missing} did not write their part within {timeout_seconds:.0f} s")
        if missing:
            time.sleep(_POLL_SECONDS)
    for rank in range(num_ranks):
        _report_path(folder, rank).unlink()
    return [record for report in reports.values() for record in report.records]


def _report_path(folder: Path, rank: int) -> Path:
    return folder / f".report-rank{rank:05d}.json"
