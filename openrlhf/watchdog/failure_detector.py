"""What ranks say of themselves, and the judgement over it: which rank is lost, in words. No thread, no socket."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SECONDS_FOR_FIRST_CAUSE = 1.0
"""A rank that fails pulls others down within milliseconds: news is collected that long before somebody is blamed."""

SECONDS_TO_LEAVE_TOGETHER = 10.0
"""Ranks that stop for a reason of their own (a user's error) all do so; one that goes alone leaves others waiting."""

NUM_MISSED_BEATS = 3
MAX_RANKS_SHOWN = 8
MAX_SAMPLES_SHOWN = 8


@dataclass(frozen=True)
class Activity:
    """What a rank is doing, since when (monotonic clock of the process that holds this)."""

    what: str
    samples: tuple[str, ...] = ()
    is_long: bool = False
    since: float = field(default_factory=time.monotonic)

    def as_message(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.since
        return {
            "what": self.what,
            "samples": self.samples[:MAX_SAMPLES_SHOWN],
            "long": self.is_long,
            "seconds": seconds,
        }

    @classmethod
    def from_message(cls, message: dict[str, Any], now: float) -> Activity:
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
    heard_at: float
    activity: Activity
    has_left: bool = False


@dataclass(frozen=True)
class _Loss:
    rank: int
    words: str
    is_gone: bool
    decide_at: float


class Judge:
    """Hears the beats of `peers` and says when a rank is lost. Times are of `time.monotonic`, given by the caller."""

    def __init__(self, rank: int, peers: Iterable[int], hang_seconds: float, seconds_between_beats: float, now: float):
        self._rank = rank
        self._hang_seconds = hang_seconds
        self._quiet_seconds = NUM_MISSED_BEATS * seconds_between_beats
        self._peers = {peer: _Peer(now, Activity("starting", is_long=True, since=now)) for peer in peers}
        self._losses: list[_Loss] = []

    def hear(self, rank: int, message: dict[str, Any], now: float) -> None:
        """A beat, a good-bye, or the news of a failure."""
        peer = self._peers[rank]
        peer.heard_at = now
        if "what" in message:
            peer.activity = Activity.from_message(message, now)
        elif "failed" in message:
            self.note_failure(rank, message["failed"], now)
        elif "left" in message:
            peer.has_left = True
            if message["left"] is not None:
                decide_at = now + SECONDS_TO_LEAVE_TOGETHER
                self._losses.append(_Loss(rank, f"rank {rank} has left: {message['left']}", False, decide_at))

    def hear_end(self, rank: int, now: float) -> None:
        """The connection has ended."""
        if not self._peers[rank].has_left:
            self._peers[rank].has_left = True
            words = f"rank {rank} is gone: its process has ended without a word (killed, out of memory, machine lost)"
            self._losses.append(_Loss(rank, words, True, now + SECONDS_FOR_FIRST_CAUSE))

    def note_failure(self, rank: int, error: str, now: float) -> None:
        """Also for the rank that judges."""
        if rank in self._peers:
            self._peers[rank].has_left = True
        self._losses.append(_Loss(rank, f"rank {rank} has failed: {error}", False, now + SECONDS_FOR_FIRST_CAUSE))

    def forgive(self, seconds: float) -> None:
        """The judge itself was stopped that long: what it did not hear was not for lack of saying."""
        for peer in self._peers.values():
            peer.heard_at += seconds

    def verdict(self, own: Activity, now: float) -> Verdict | None:
        """Whether a rank is lost; `own` is what this rank is doing."""
        return (
            self._verdict_on_losses(own, now)
            or self._silent_for(self._hang_seconds, own, now)
            or self._verdict_on_stall(own, now)
        )

    def _verdict_on_losses(self, own: Activity, now: float) -> Verdict | None:
        if not self._losses or min(loss.decide_at for loss in self._losses) > now:
            return None
        first = min(self._losses, key=lambda loss: (not loss.is_gone, loss.decide_at))
        return self._in_words(first.rank, first.words, own, now)

    def _verdict_on_stall(self, own: Activity, now: float) -> Verdict | None:
        """Where one rank is stuck the others soon are too: the one that has said nothing, or moved least, is named."""
        stalled = {
            rank: activity
            for rank, activity in self._activities(own).items()
            if not activity.is_long and now - activity.since > self._hang_seconds
        }
        if not stalled:
            return None
        silent = self._silent_for(self._quiet_seconds, own, now)
        if silent:
            return silent
        rank = min(stalled, key=lambda rank: stalled[rank].since)
        return self._in_words(rank, f"rank {rank} has done the same for {now - stalled[rank].since:.0f} s", own, now)

    def _silent_for(self, seconds: float, own: Activity, now: float) -> Verdict | None:
        silent = {r: now - peer.heard_at for r, peer in self._peers.items() if not peer.has_left}
        rank = max(silent, key=lambda rank: silent[rank], default=None)
        if rank is None or silent[rank] <= seconds:
            return None
        return self._in_words(rank, f"rank {rank} has said nothing for {silent[rank]:.0f} s", own, now)

    def _activities(self, own: Activity) -> dict[int, Activity]:
        return {self._rank: own} | {r: peer.activity for r, peer in self._peers.items() if not peer.has_left}

    def _in_words(self, rank: int, finding: str, own: Activity, now: float) -> Verdict:
        last = own if rank == self._rank else self._peers[rank].activity
        others = [(r, a) for r, a in sorted(self._activities(own).items()) if r != rank]
        lines = [f"error: {finding}; last: {last}."]
        lines += [f"  rank {r}, for {now - a.since:.0f} s: {a}" for r, a in others[:MAX_RANKS_SHOWN]]
        return Verdict(rank, "\n".join([*lines, "The job ends; --ckpt.load_enable goes on from the last checkpoint."]))
