"""One run, broken again and again until it is complete, and held to the unbroken run."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.exit_codes import EXIT_CODE_PREEMPTED, EXIT_CODE_RANK_LOST, PREEMPTION_SIGNALS
from openrlhf.tracking.metrics_file import read_records
from tests.faults import breaks
from tests.faults.bench import SECONDS_FOR_A_RUN, Bench, Layout, differences, outcome_of
from tests.faults.breaks import POINTS_AT_THE_END, Break
from tests.faults.jobs import Job
from tests.faults.launched import Launched, torchrun

SECONDS_TO_END_AS_ORPHANS = 10.0
SECONDS_TO_END = 40.0
"""A job that lost a rank must end by itself within that; far below any timeout of a collective."""

_HAS_CHOSEN = re.compile("going on from|this run has finished")  # said once all checkpoints have been looked at
_KILLED = -9


@dataclass
class Account:
    """The faults of a run, counted, and the problems of its results."""

    name: str
    num_launches: int = 0
    num_kills: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    survivors_ended_with: Counter[int] = field(default_factory=Counter)
    longest_end_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class BrokenRun:
    """A run in `folder`. With several layouts, each launch takes one of them by chance.

    Args:
        num_faults: launches to break on the way, before the run may come to its end.
        num_faults_at_end: launches to break while the last checkpoint is written and the model is exported.
        make: makes the breaks.
    """

    def __init__(
        self, bench: Bench, layouts: Sequence[Layout], folder: Path, rng: random.Random, make=breaks.by_chance
    ):
        self._bench, self._layouts, self._out, self._rng, self._make = bench, layouts, folder, rng, make
        self._store = CheckpointStore(folder / "checkpoints")
        self._whole_step = 0
        self.account = Account(
            " / ".join(map(str, layouts))
            if len(layouts) < 3
            else f"{layouts[0].command}, {len(layouts)} layouts by turns"
        )

    def run(self, num_faults: int, num_faults_at_end: int) -> Account:
        start = time.monotonic()
        is_complete = False
        while not is_complete and sum(self.account.kinds.values()) < num_faults:
            is_complete = self._launch(self._make)
        for point in self._rng.sample(POINTS_AT_THE_END, num_faults_at_end):
            is_complete = is_complete or self._launch(
                lambda rng, n, point=point: breaks.kill_at_point(rng, n, (point,))
            )
        if not is_complete and not self._launch(None):
            self._wrong("the run is not complete after a launch that nothing broke")
        self._compare()
        self.account.seconds = time.monotonic() - start
        return self.account

    # --- a launch --------------------------------------------------------------------------------------------------

    def _launch(self, make) -> bool:
        """True where the run is complete now."""
        account, layout = self.account, self._rng.choice(self._layouts)
        fault = make(self._rng, layout.num_ranks) if make else None
        damaged = self._damage_newest() if fault and self._rng.random() < 0.15 else None
        account.num_launches += 1
        if fault and fault.kills_launcher:
            return self._launch_and_kill_launcher(layout, fault)
        points = {fault.rank: fault.fault_point} if fault and fault.fault_point else {}
        log = self._log_of(account.num_launches)
        with self._job(layout, log, points) as job:
            codes = self._break_and_wait(job, fault) if fault else job.wait(SECONDS_FOR_A_RUN)
            self._check_codes(codes, fault, job)
            if damaged and _HAS_CHOSEN.search(job.words_said()) and str(damaged) not in job.words_said():
                self._wrong(f"launch {account.num_launches} did not name {damaged}, which was damaged")
        self._check_disk(allow_loss=damaged is not None)
        return codes == [0] * layout.num_ranks

    def _launch_and_kill_launcher(self, layout: Layout, fault: Break) -> bool:
        """Its ranks must end by themselves, and save nothing more."""
        words, log = self._bench.words(layout, self._out), self._log_of(self.account.num_launches)
        with Launched(torchrun(layout.num_ranks, module=layout.module), words, log / "log") as job:
            assert fault.moment is not None
            fault.moment.wait(job, self._out)
            is_late = not job.is_running()
            job.launcher.kill()
            self.account.kinds[fault.kind] += 1
            if not job.have_ranks_left(SECONDS_TO_END_AS_ORPHANS):
                self._wrong(f"ranks outlived their launcher:\n{job.said()}")
            self.account.num_kills += not is_late
        self._check_disk(allow_loss=False)
        return is_late and job.launcher.returncode == 0

    def _break_and_wait(self, job: Job, fault: Break) -> list[int] | None:
        fault.apply(job, self._out)
        if fault.second_job:
            self._launch_second_job(job, fault.second_job)
        job.wait_for_first_loss(SECONDS_FOR_A_RUN)
        lost_at = time.monotonic()
        if fault.moment is not None and fault.moment.num_lines == 0 and job.has_lost_a_rank():
            job.wait(1.0)  # ranks that have not joined yet are left to the launcher, and this is the launcher
            job.kill(range(len(job.ranks)))
        codes = job.wait(SECONDS_TO_END)
        self.account.kinds[fault.kind] += 1
        if codes is not None and _KILLED in codes:
            self.account.num_kills += 1
            self.account.longest_end_seconds = max(self.account.longest_end_seconds, time.monotonic() - lost_at)
        return codes

    def _launch_second_job(self, first: Job, second_job: tuple[float, float]) -> None:
        """The second one waits for the folder; when the first one has been killed, it goes on with the run."""
        layout = self._layouts[0]
        log = self._log_of(self.account.num_launches) / "second"
        with self._job(layout, log) as second:
            for job, seconds in zip((first, second), second_job, strict=True):
                job.wait(seconds)
                job.kill(range(len(job.ranks)))
            codes = second.wait(SECONDS_TO_END)
            if codes is None or set(codes) - {0, _KILLED}:
                self._wrong(f"the second job on a folder ended with {codes}:\n{second.words_said()}")

    def _job(self, layout: Layout, log: Path, fault_points: dict[int, str] | None = None) -> Job:
        return Job(self._bench.words(layout, self._out), layout.num_ranks, log, fault_points, module=layout.module)

    def _log_of(self, launch: int) -> Path:
        return self._out.parent / f"{self._out.name}-log" / f"launch{launch:03d}"

    def _damage_newest(self) -> Path | None:
        """Only where an older one is there to go on from."""
        whole = self._store.whole()
        if len(whole) < 2:
            return None
        self.account.damages[breaks.damage(self._rng, whole[0])] += 1
        self._whole_step = self._store.step_of(whole[1].name) or 0
        return whole[0]

    # --- what must hold --------------------------------------------------------------------------------------------

    def _check_codes(self, codes: list[int] | None, fault: Break | None, job: Job) -> None:
        if codes is None:
            return self._wrong(f"a rank still ran after {fault}:\n{job.words_said()}")
        survivors = [code for code in codes if code != _KILLED]
        if _KILLED in codes:
            self.account.survivors_ended_with.update(survivors)
        allowed = {EXIT_CODE_RANK_LOST, 0} if _KILLED in codes else {0}
        if fault and fault.signals:
            allowed |= {EXIT_CODE_PREEMPTED, EXIT_CODE_RANK_LOST}
            allowed |= {-number for number in PREEMPTION_SIGNALS}  # before the command has run a line of its own
        if set(survivors) - allowed:
            self._wrong(f"exit codes {codes} after {fault}:\n{job.words_said()}")
        return None

    def _check_disk(self, allow_loss: bool) -> None:
        """Checks what the next launch will find, by the means by which it looks."""
        store = CheckpointStore(self._store.root)
        store.clean_leftovers()  # brings back what was moved, to be replaced by its like, when the kill came
        path, _ = store.newest_whole()
        step = self._store.step_of(path.name) or 0 if path else 0
        if step < self._whole_step:
            self._wrong(f"a whole checkpoint of step {self._whole_step} was there, now the newest is of {step}")
        self._whole_step = step
        metrics = self._out / "metrics.jsonl"
        steps = (
            [record["global_step"] for record in read_records(metrics) if "loss" in record] if metrics.exists() else []
        )
        if steps != list(range(1, len(steps) + 1)):
            self._wrong(f"metrics.jsonl holds the steps {steps}")

    def _compare(self) -> None:
        """With the unbroken run; and one more launch finds nothing to do."""
        same = len(self._layouts) == 1
        meant = self._bench.unbroken(self._layouts[0])
        for problem in differences(outcome_of(self._out), meant, same):
            self._wrong(f"not what the unbroken run left: {problem}")
        written_at = (self._out / "model.safetensors").stat().st_mtime_ns
        log = self._out.parent / f"{self._out.name}-log" / "again"
        with self._job(self._layouts[0], log) as job:
            codes = job.wait(SECONDS_FOR_A_RUN)
            if codes is None or any(codes) or "this run has finished" not in job.words_said():
                self._wrong(f"a finished run, launched again, ended with {codes}:\n{job.words_said()}")
        if (self._out / "model.safetensors").stat().st_mtime_ns != written_at:
            self._wrong("a finished run, launched again, wrote its model anew")

    def _wrong(self, problem: str) -> None:
        self.account.problems.append(f"launch {self.account.num_launches}: {problem}")
