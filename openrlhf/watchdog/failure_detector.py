"""The failure detector: from the messages of the ranks to the rank that is lost, in words. No thread, no socket.

A message is one of: a heartbeat with the rank's activity, the news that it failed, the news that it leaves.
Times are of `time.monotonic` in the process that holds the detector, given by the caller.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SECONDS_FOR_FIRST_CAUSE = 1.0
"""A rank that fails pulls others down within milliseconds: news is collected that long before a rank is named."""

SECONDS_TO_LEAVE_TOGETHER = 10.0
"""Ranks that stop for a reason of their own (a user's error) all do so; one that goes alone leaves others waiting."""

NUM_MISSED_HEARTBEATS = 3
MAX_RANKS_SHOWN = 8
MAX_SAMPLES_SHOWN = 8


@dataclass(frozen=True)
class Activity:
    """The present work of a rank, and its beginning (on the monotonic clock of the process that holds this).

    is_long: it may take however long, as a save.
    """

    what: str
    samples: tuple[str, ...] = ()
    is_long: bool = False
    since: float = field(default_factory=time.monotonic)

    def as_message(self) -> dict[str, Any]:
        """A heartbeat. Clocks differ between machines, so it holds the seconds that have passed."""
        return {
            "what": self.what,
            "samples": self.samples[:MAX_SAMPLES_SHOWN],
            "long": self.is_long,
            "seconds": time.monotonic() - self.since,
        }

    @classmethod
    def from_message(cls, message: dict[str, Any], now: float) -> Activity:
        """Inverse of `as_message`, on this process's clock."""
        return cls(message["what"], tuple(message["samples"]), message["long"], now - message["seconds"])

    def __str__(self) -> str:
        return f"{self.what}; samples {', '.join(self.samples)}" if self.samples else self.what


@dataclass(frozen=True)
class Verdict:
    """The rank that is lost, and the words for people."""

    rank: int
    words: str


@dataclass
class _Peer:
    last_heard: float
    activity: Activity
    has_left: bool = False


@dataclass(frozen=True)
class _Loss:
    """News of a rank that failed, left or is gone. It becomes a verdict at `decide_at`."""

    rank: int
    words: str
    is_gone: bool
    decide_at: float


class FailureDetector:
    """Takes the messages of `peers` and says when a rank, of them or this one, is lost.

    Args:
        rank: of this process.
        hang_seconds: how long a rank may be silent, or at one thing.
        heartbeat_seconds: between two heartbeats of a rank.
    """

    def __init__(self, rank: int, peers: Iterable[int], hang_seconds: float, heartbeat_seconds: float, now: float):
        self._rank = rank
        self._hang_seconds = hang_seconds
        self._quiet_seconds = NUM_MISSED_HEARTBEATS * heartbeat_seconds
        self._peers = {peer: _Peer(now, Activity("starting", is_long=True, since=now)) for peer in peers}
        self._losses: list[_Loss] = []

    # --- news of the ranks ---

    def on_message(self, rank: int, message: dict[str, Any], now: float) -> None:
        """A heartbeat, the news that the rank leaves, or that it has failed."""
        peer = self._peers[rank]
        peer.last_heard = now
        if "what" in message:
            peer.activity = Activity.from_message(message, now)
        elif "failed" in message:
            self.on_failure(rank, message["failed"], now)
        elif "left" in message:
            peer.has_left = True
            # A rank that leaves at the end of its work gives no reason. One with a reason is lost only if the others
            # do not leave for the same reason within the time given.
            if message["left"] is not None:
                words = f"rank {rank} has left: {message['left']}"
                self._losses.append(_Loss(rank, words, False, now + SECONDS_TO_LEAVE_TOGETHER))

    def on_disconnect(self, rank: int, now: float) -> None:
        """The connection has ended. Where the rank did not say before that it leaves, its process is gone."""
        if not self._peers[rank].has_left:
            self._peers[rank].has_left = True
            words = f"rank {rank} is gone: its process has ended without a word (killed, out of memory, machine lost)"
            self._losses.append(_Loss(rank, words, True, now + SECONDS_FOR_FIRST_CAUSE))

    def on_failure(self, rank: int, error: str, now: float) -> None:
        """A rank, a peer or this one, has failed with `error`."""
        if rank in self._peers:
            self._peers[rank].has_left = True
        self._losses.append(_Loss(rank, f"rank {rank} has failed: {error}", False, now + SECONDS_FOR_FIRST_CAUSE))

    def on_own_pause(self, seconds: float) -> None:
        """This process itself was stopped that long: its peers were not silent, it did not listen."""
        for peer in self._peers.values():
            peer.last_heard += seconds

    # --- verdicts ---

    def verdict(self, own: Activity, now: float) -> Verdict | None:
        """The rank that is lost, None while there is none; `own` is the activity of this rank.

        The surest sign comes first: news of a loss, then long silence, then no progress.
        """
        return (
            self._verdict_on_losses(own, now)
            or self._verdict_on_silence(self._hang_seconds, own, now)
            or self._verdict_on_stall(own, now)
        )

    def _verdict_on_losses(self, own: Activity, now: float) -> Verdict | None:
        # When a rank dies, its peers fail in their collectives, and their news may be here first. So all news is
        # collected until the first is due. Then a process that is gone is the cause, and of others the one due first.
        if not self._losses or min(loss.decide_at for loss in self._losses) > now:
            return None
        first = min(self._losses, key=lambda loss: (not loss.is_gone, loss.decide_at))
        return self._in_words(first.rank, first.words, own, now)

    def _verdict_on_silence(self, seconds: float, own: Activity, now: float) -> Verdict | None:
        silent = {r: now - peer.last_heard for r, peer in self._peers.items() if not peer.has_left}
        rank = max(silent, key=lambda rank: silent[rank], default=None)
        if rank is None or silent[rank] <= seconds:
            return None
        return self._in_words(rank, f"rank {rank} has said nothing for {silent[rank]:.0f} s", own, now)

    def _verdict_on_stall(self, own: Activity, now: float) -> Verdict | None:
        # Where one rank is stuck, the others soon wait for it in a collective, so several stand still. A rank that has
        # missed its last heartbeats as well is the cause; otherwise the one that has stood still for longest is.
        stalled = {
            rank: activity
            for rank, activity in self._activities(own).items()
            if not activity.is_long and now - activity.since > self._hang_seconds
        }
        if not stalled:
            return None
        silent = self._verdict_on_silence(self._quiet_seconds, own, now)
        if silent:
            return silent
        rank = min(stalled, key=lambda rank: stalled[rank].since)
        return self._in_words(rank, f"rank {rank} has done the same for {now - stalled[rank].since:.0f} s", own, now)

    def _activities(self, own: Activity) -> dict[int, Activity]:
        return {self._rank: own} | {r: peer.activity for r, peer in self._peers.items() if not peer.has_left}

    def _in_words(self, rank: int, finding: str, own: Activity, now: float) -> Verdict:
        last = own if rank == self._rank else self._peers[rank].activity
        others = [(r, a) for r, a in sorted(self._activities(own).items()) if r != rank]
        lines = [f"error: {finding}; last: {last}."]
        lines += [f"  rank {r}, for {now - a.since:.0f} s: {a}" for r, a in others[:MAX_RANKS_SHOWN]]
        return Verdict(rank, "\n".join([*lines, "The job ends; --ckpt.load_enable goes on from the last checkpoint."]))
