"""A job of the command line, launched in a fraction of a second: a rank is forked, and runs the command itself, from
`run_command` on."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.helpers.fork_server import fork_server
from tests.helpers.ranks import _free_port

SECONDS_TO_IMPORT = 600.0


class Job:
    """The ranks of one launch.

    Args:
        words: the command line.
        log: folder; rank r writes all it says to `<log>/rank<r>.log`.
        fault_points: what to ask of `OPENRLHF_FAULT_POINT`, by rank.
        largest_file_bytes: the operating system refuses to let a file grow beyond.
        module: of the command.
        before: called in each rank before the command; a function of a module.
    """

    def __init__(
        self,
        words: Sequence[str],
        num_ranks: int,
        log: Path,
        fault_points: dict[int, str] | None = None,
        largest_file_bytes: int | None = None,
        module: str = "openrlhf.cli.train_sft",
        before: Callable[[], None] | None = None,
    ):
        log.mkdir(parents=True, exist_ok=True)
        self._log = log
        port = _free_port()
        self.ranks = [
            fork_server().Process(
                target=_run_rank,
                args=(list(words), rank, num_ranks, port, log, (fault_points or {}).get(rank), largest_file_bytes)
                + (module, before),
            )
            for rank in range(num_ranks)
        ]
        for process in self.ranks:
            process.start()

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self.ranks)

    def has_lost_a_rank(self) -> bool:
        return any(process.exitcode not in (None, 0) for process in self.ranks)

    def wait_for_first_loss(self, seconds: float) -> None:
        """Until a rank has ended other than well, or all have ended, or that long."""
        deadline = time.monotonic() + seconds
        while self.is_running() and not self.has_lost_a_rank() and time.monotonic() < deadline:
            time.sleep(0.01)

    def send(self, number: signal.Signals, rank: int) -> None:
        """A signal to a rank that may have ended already, or ends while it is sent."""
        process = self.ranks[rank]
        if process.is_alive() and process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def kill(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            self.send(signal.SIGKILL, rank)

    def wait(self, seconds: float) -> list[int] | None:
        """Exit codes by rank (negative: the signal that ended it); None if a rank is still running after that long."""
        deadline = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        return None if self.is_running() else [int(process.exitcode or 0) for process in self.ranks]

    def words_said(self) -> str:
        """All that the ranks have written."""
        return "\n".join(
            f"--- rank {rank}\n{(self._log / f'rank{rank}.log').read_text(errors='replace')}"
            for rank in range(len(self.ranks))
            if (self._log / f"rank{rank}.log").exists()
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill(range(len(self.ranks)))
        for process in self.ranks:
            process.join()


def _run_rank(
    words: list[str],
    rank: int,
    num_ranks: int,
    port: int,
    log: Path,
    fault_point: str | None,
    largest_file_bytes: int | None,
    module: str,
    before: Callable[[], None] | None,
) -> None:
    file = os.open(log / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        LOCAL_WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if fault_point:
        os.environ["OPENRLHF_FAULT_POINT"] = fault_point
    if largest_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))
    if before is not None:
        before()
    from openrlhf.cli.entry import leave_when_asked, run_command

    sys.argv[1:] = words
    leave_when_asked()
    run_command(importlib.import_module(module).main)
