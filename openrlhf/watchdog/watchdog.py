"""Ranks that watch each other: one that dies, fails or hangs ends the job within a bound, and is named.

Every rank notes its present work. A thread on each rank sends it to rank 0 as a heartbeat, about every second (of more
than 1,024 ranks less often), over a connection of its own, and rank 0 sends its own to the others. None of this is a
collective, so it works while collectives hang. A rank is lost when

- its process is gone (the connection ends and the rank had not said that it leaves: killed, out of memory, a dead
  machine),
- it says that it failed, and with what error,
- it has said nothing for `hang_seconds` (stopped, or stuck where no thread of it can run),
- it does the same thing for `hang_seconds`, and that is not work announced as long (`long_phase`).

Rank 0 then names the rank and its last work to all, and every process ends with exit code 69.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from torch.distributed import ProcessGroup

from openrlhf.errors import UserError
from openrlhf.exit_codes import EXIT_CODE_RANK_LOST, RunStopped
from openrlhf.watchdog.connections import Message, connect_peers, joining_ranks
from openrlhf.watchdog.failure_detector import SECONDS_FOR_FIRST_CAUSE, Activity, FailureDetector, Verdict

HEARTBEAT_SECONDS = 1.0
RANKS_A_SECOND = 1024  # whose heartbeats rank 0 reads; more ranks send theirs less often
_RAISED_ON_ALL_RANKS = (UserError, RunStopped, SystemExit, KeyboardInterrupt)


class Watchdog:
    """While it lasts (`with watchdog:`, on all ranks), this process is watched and watches.

    Args:
        control: a group of all ranks, used to connect them and not afterwards.
        hang_seconds: how long a rank may be silent, or at one thing.
        end: called with a message for people when a rank is lost. By default it is printed and the process ends.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        control: ProcessGroup | None = None,
        hang_seconds: float = 600.0,
        end: Callable[[str], None] | None = None,
    ):
        self._rank, self._world_size, self._control = rank, world_size, control
        self._hang_seconds = hang_seconds
        self._end = end or _end_process
        self._activity = Activity("starting", is_long=True)
        self._heartbeat_seconds = min(HEARTBEAT_SECONDS * max(1, world_size / RANKS_A_SECOND), hang_seconds / 8)
        self._is_concluded = threading.Event()
        self._own_failure: str | None = None

    # --- what this rank is doing -----------------------------------------------------------------------------------

    def note(self, what: str, samples: tuple[str, ...] = (), is_long: bool = False) -> None:
        """This rank begins work that takes well under `hang_seconds`, unless it `is_long`. Costs nothing."""
        self._activity = Activity(what, samples, is_long)

    @contextmanager
    def long_phase(self, what: str) -> Iterator[None]:
        """Work of this rank that may take however long: only its silence or its end counts as a loss."""
        before = self._activity
        self._activity = Activity(what, is_long=True)
        try:
            yield
        finally:
            self._activity = Activity(f"after {what}", is_long=before.is_long)

    # --- watching --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Watchdog:
        address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        with joining_ranks(self._world_size):
            self._connections = connect_peers(self._rank, self._world_size, self._control, address)
        self._detector = FailureDetector(
            self._rank, self._connections.ranks, self._hang_seconds, self._heartbeat_seconds, time.monotonic()
        )
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, _RAISED_ON_ALL_RANKS):
            self._connections.send({"left": error and _in_words(error)})
        else:
            self._own_failure = _in_words(error)
            # Another rank may have failed first, and this one for its sake: rank 0 then says so in this time.
            self._is_concluded.wait(2 * SECONDS_FOR_FIRST_CAUSE + HEARTBEAT_SECONDS)
        self._is_concluded.set()
        self._thread.join()
        self._connections.close()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._is_concluded.is_set():
            self._send_heartbeat()
            self._listen_until(time.monotonic() + self._heartbeat_seconds)
            now = time.monotonic()
            if now - last > self._hang_seconds / 2:  # this process itself was stopped for a while, as by SIGSTOP
                self._detector.on_own_pause(now - last)
            last = now
            verdict = self._detector.verdict(self._activity, now)
            if verdict is not None:
                self._connections.send({"lost": verdict.rank, "words": verdict.words})
                self._conclude(verdict)

    def _send_heartbeat(self) -> None:
        self._connections.send(self._activity.as_message())
        if self._own_failure is not None:
            self._connections.send({"failed": self._own_failure})
            if self._rank == 0:
                self._detector.on_failure(0, self._own_failure, time.monotonic())
            self._own_failure = None

    def _listen_until(self, moment: float) -> None:
        """Or until this rank has failed: that is told at once."""
        while (now := time.monotonic()) < moment and not self._is_concluded.is_set() and self._own_failure is None:
            messages, ended = self._connections.receive(min(moment - now, HEARTBEAT_SECONDS))
            for rank, message in messages:
                self._on_message(rank, message)
            for rank in ended:
                self._detector.on_disconnect(rank, time.monotonic())

    def _on_message(self, rank: int, message: Message) -> None:
        if "lost" in message:
            self._conclude(Verdict(message["lost"], message["words"]))
        else:
            self._detector.on_message(rank, message, time.monotonic())

    def _conclude(self, verdict: Verdict) -> None:
        """Ends the process, unless this rank is the lost one: its own exception ends it, with a traceback."""
        self._is_concluded.set()
        if verdict.rank != self._rank:
            self._end(verdict.words)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _end_process(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(EXIT_CODE_RANK_LOST)
