"""The part of a save that runs beside the training loop, in threads.

No collective runs in these threads: it could meet one of training's in another order on another rank. A rank tells
rank 0 that its files are written by a small file in the staging folder (`RankReport`). Every other agreement between
ranks is made by the main threads, in `checkpointer.py`.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from openrlhf.atomic_file import replace_file
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.manifest import FileRecord
from openrlhf.checkpoint.store import CheckpointStore

_POLL_SECONDS = 0.02
_POLL_SHARE = 20  # times what a look took, between two looks
_NICENESS = 7

Result = TypeVar("Result")


def in_background(function: Callable[[], Result], name: str) -> Future[Result]:
    """Runs the function in a thread of low priority. The interpreter does not end before the thread."""
    executor = ThreadPoolExecutor(1, name, initializer=_lower_priority)
    future = executor.submit(function)
    executor.shutdown(wait=False)  # the thread ends with the function
    return future


def problem_of(future: Future[Any]) -> str | None:
    """Waits for the end; the error in words, None where there was none."""
    error = future.exception()
    return f"{type(error).__name__}: {error}" if error else None


def _lower_priority() -> None:
    """Beside threads that compute, this thread takes about a sixth of a core; of an idle core it takes all."""
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class PendingSave:
    """A save that is being written.

    Every rank has a thread that writes its files and then its report. Rank 0 has a second one that waits for the
    reports of all ranks and puts the checkpoint in place.

    Args:
        staging: the folder of `store` that all ranks write into.
        write: writes and flushes this rank's files.
        put_in_place: makes the newest checkpoint of `staging`, given the records of all files; see
            `CheckpointStore.put_in_place`.
        timeout_seconds: for all ranks to have written their files.
    """

    def __init__(
        self,
        store: CheckpointStore,
        staging: Path,
        rank: int,
        num_ranks: int,
        write: Callable[[], list[FileRecord]],
        put_in_place: Callable[[Path, list[FileRecord]], tuple[Path, list[str]]],
        timeout_seconds: float,
    ):
        self._store, self._staging = store, staging
        self._rank, self._num_ranks = rank, num_ranks
        self._write, self._put_in_place = write, put_in_place
        self._timeout_seconds = timeout_seconds
        self._must_stop = threading.Event()
        self._writer = in_background(self._write_and_report, "checkpoint writer")
        self._finisher = in_background(self._finish, "checkpoint finisher") if rank == 0 else None

    def _write_and_report(self) -> None:
        try:
            records = self._write()
        except Exception as error:
            RankReport([], str(error)).write(self._staging, self._rank)
            raise
        RankReport(records).write(self._staging, self._rank)
        fault_point("save.rank_done")

    def _finish(self) -> list[str]:
        try:
            records = collect_reports(self._staging, self._num_ranks, self._must_stop.is_set, self._timeout_seconds)
            fault_point("save.all_ranks_done")
            _, rotation_problems = self._put_in_place(self._staging, records)
        except Exception:
            self.discard()
            raise
        return rotation_problems

    def wait_for_own_files(self) -> str | None:
        """Wait until this rank has written its files. Returns the problem, if there was one."""
        return problem_of(self._writer)

    def wait_for_end(self) -> tuple[list[str], str | None]:
        """Wait until the checkpoint is in place or has failed. On ranks other than 0, nothing is waited for.

        Returns: problems of the rotation; the problem of the save, if there was one.
        """
        if self._finisher is None:
            return [], None
        problem = problem_of(self._finisher)
        return [] if problem else self._finisher.result(), problem

    def stop(self) -> None:
        """Another rank has failed: rank 0 stops waiting for reports that will not come."""
        self._must_stop.set()

    def discard(self) -> None:
        """Remove all that was written. Called again once all ranks have stopped writing."""
        self._store.discard(self._staging)


@dataclass(frozen=True)
class RankReport:
    """The report of a rank whose part of a save has ended: the records of its files, or its problem."""

    records: list[FileRecord]
    problem: str | None = None

    def write(self, folder: Path, rank: int) -> None:
        """Put the report into `folder`, whole or not at all."""
        replace_file(_report_path(folder, rank), json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path, rank: int) -> "RankReport | None":
        """The report of `rank`; None while it is not there."""
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
    rank_of = {_report_path(folder, rank).name: rank for rank in range(num_ranks)}
    reports: dict[int, RankReport] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(reports) < num_ranks:
        began_at = time.monotonic()
        arrived = [rank_of[name] for name in os.listdir(folder) if name in rank_of]
        found = {rank: report for rank in arrived if rank not in reports and (report := RankReport.read(folder, rank))}
        if failed := [f"rank {rank}: {report.problem}" for rank, report in sorted(found.items()) if report.problem]:
            raise OSError("; ".join(failed))
        reports |= found
        if found:
            continue
        if must_stop():
            raise OSError("another rank could not write its part")
        now = time.monotonic()
        if now > deadline:
            missing = [rank for rank in range(num_ranks) if rank not in reports]
            raise OSError(f"ranks {missing} did not write their part within {timeout_seconds:.0f} s")
        # The folder of thousands of ranks takes time to list, and training needs that time more.
        time.sleep(max(_POLL_SECONDS, _POLL_SHARE * (now - began_at)))
    for rank in range(num_ranks):
        _report_path(folder, rank).unlink()
    return [record for _, report in sorted(reports.items()) for record in report.records]


def _report_path(folder: Path, rank: int) -> Path:
    return folder / f".report-rank{rank:05d}.json"
