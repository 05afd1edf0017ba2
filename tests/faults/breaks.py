"""The ways to break a launch. Each is made by chance from a `random.Random`, so that a seed names a whole campaign."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.faults.jobs import Job
from tests.helpers.fault_points import EXPORT_POINTS, SAVE_POINTS

# Points that every rank passes; the others are rank 0's, which puts the checkpoint in place.
POINTS_OF_EVERY_RANK = (
    "save.copied",
    "save.half_of_tensors_written",
    "save.tensors_written",
    "save.tensors_flushed",
    "save.random_states_written",
    "save.rank_done",
)
# Passed at the end of a run alone: the last step is saved a second time, as finished; then the model is exported.
POINTS_AT_THE_END = ("save.old_namesake_moved", *EXPORT_POINTS)
RARE_POINTS = (*POINTS_AT_THE_END, "save.best_renamed")  # a launch passes them once, if at all
POINTS_ON_THE_WAY = tuple(point for point in SAVE_POINTS if point not in POINTS_AT_THE_END)
_SECONDS_TO_START = 2.5
_SECONDS_BETWEEN_LOOKS = 0.005


class Running(Protocol):
    def is_running(self) -> bool: ...


@dataclass(frozen=True)
class Moment:
    """After so many lines of this launch in metrics.jsonl, and then so many seconds. No line: while it starts."""

    num_lines: int
    seconds: float

    @classmethod
    def by_chance(cls, rng: random.Random) -> Moment:
        if rng.random() < 0.2:
            return cls(0, rng.uniform(0, _SECONDS_TO_START))
        return cls(rng.randint(1, 5), rng.uniform(0, 0.15))

    def wait(self, job: Running, out: Path) -> None:
        """Until then, or until the job has ended."""
        last_step = _last_step(out)
        while self.num_lines and job.is_running() and not 0 < _last_step(out) - last_step >= self.num_lines:
            if _last_step(out) < last_step:  # the file was cut back to where the launch goes on from
                last_step = _last_step(out)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        time.sleep(self.seconds)


@dataclass(frozen=True)
class Break:
    """The things done to one launch.

    fault_point: asked of `rank` by the environment ("" for none).
    ranks_killed: SIGKILL to these at `moment`.
    signals: (rank, signal, seconds until the next) from `moment` on.
    second_job: at `moment` the same command is launched once more, into the same folder; so many seconds later the
        first job is killed, and so many after that the second one.
    kills_launcher: the launch is torchrun's, which is killed at `moment`.
    """

    kind: str
    moment: Moment | None = None
    rank: int = 0
    fault_point: str = ""
    ranks_killed: tuple[int, ...] = ()
    signals: tuple[tuple[int, signal.Signals, float], ...] = ()
    second_job: tuple[float, float] | None = None
    kills_launcher: bool = False

    def apply(self, job: Job, out: Path) -> None:
        """Does it, but for the fault point: that waits inside the rank."""
        if self.moment is not None:
            self.moment.wait(job, out)
        for rank, number, seconds in self.signals:
            job.send(number, rank)
            time.sleep(seconds)
        job.kill(self.ranks_killed)


def kill_at_random(rng: random.Random, num_ranks: int) -> Break:
    everyone = tuple(range(num_ranks))
    if num_ranks > 1 and rng.random() < 0.5:
        return Break("SIGKILL, one rank, random instant", Moment.by_chance(rng), ranks_killed=(rng.choice(everyone),))
    return Break("SIGKILL, all ranks, random instant", Moment.by_chance(rng), ranks_killed=everyone)


def kill_at_point(rng: random.Random, num_ranks: int, points: tuple[str, ...] = POINTS_ON_THE_WAY) -> Break:
    point = rng.choice(points)
    rank = rng.randrange(num_ranks) if point in POINTS_OF_EVERY_RANK else 0
    nth = 1 if point in RARE_POINTS else rng.randint(1, 3)
    return Break(f"SIGKILL at {point}", rank=rank, fault_point=f"{point}:{nth}")


def signal_storm(rng: random.Random, num_ranks: int) -> Break:
    signals = tuple(
        (rng.randrange(num_ranks), rng.choice([signal.SIGTERM, signal.SIGUSR1]), rng.uniform(0, 0.3))
        for _ in range(rng.randint(1, 12))
    )
    return Break("SIGTERM and SIGUSR1 storm", Moment.by_chance(rng), signals=signals)


def disk_full_then_kill(rng: random.Random, num_ranks: int) -> Break:
    """The disk gives an error at a point of a save; the run goes on, until it is killed."""
    point = rng.choice(POINTS_ON_THE_WAY)
    rank = rng.randrange(num_ranks) if point in POINTS_OF_EVERY_RANK else 0
    moment = Moment(rng.randint(4, 8), rng.uniform(0, 0.15))
    fault_point = f"{point}:{rng.randint(1, 2)}:disk_full"
    return Break("disk full, then SIGKILL", moment, rank, fault_point, ranks_killed=tuple(range(num_ranks)))


def second_job(rng: random.Random, num_ranks: int) -> Break:
    return Break(
        "a second job on the folder", Moment.by_chance(rng), second_job=(rng.uniform(0, 1.2), rng.uniform(0, 3))
    )


def kill_launcher(rng: random.Random, num_ranks: int) -> Break:
    return Break("SIGKILL of torchrun alone", Moment(rng.randint(1, 8), rng.uniform(0, 0.15)), kills_launcher=True)


def by_chance(rng: random.Random, num_ranks: int) -> Break:
    """On the way of a run: mostly kills."""
    kinds = [kill_at_random, kill_at_point, signal_storm, disk_full_then_kill, second_job, kill_launcher]
    return rng.choices(kinds, weights=[10, 10, 2, 3, 1, 1])[0](rng, num_ranks)


def damage(rng: random.Random, checkpoint: Path) -> str:
    """Flips a bit, cuts a file short or removes one; what was done."""
    path = rng.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file()))
    kind = rng.choice(["a bit flipped", "a bit flipped", "a file cut short", "a file removed"])
    data = bytearray(path.read_bytes())
    if kind == "a bit flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "a file cut short":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        path.unlink()
    return kind


def _last_step(out: Path) -> int:
    """Lines in metrics.jsonl: a step each, but for evaluations."""
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
