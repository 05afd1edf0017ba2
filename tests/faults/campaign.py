"""Many runs broken in many ways, on many layouts; what was done and what came of it."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from openrlhf.checkpoint.manifest import verify
from openrlhf.checkpoint.store import CheckpointStore
from tests.faults.bench import Bench, Layout
from tests.faults.broken_run import Account, BrokenRun

FAULTS_A_RUN = 13
FAULTS_AT_THE_END_OF_A_RUN = 3
FLIPS_A_FILE = 20

SAME_LAYOUT = (
    [Layout(1, 1)], [Layout(1, 2)], [Layout(1, 3)],
    [Layout(2, 1)], [Layout(2, 2)], [Layout(2, 3)],
    [Layout(1, 3, "bf16")], [Layout(2, 1, "bf16")], [Layout(2, 2, "bf16")], [Layout(2, 3, "bf16")],
)  # fmt: skip
BY_TURNS = (
    [Layout(1, 1), Layout(2, 1), Layout(4, 1, micro_batch_size=1)],
    [Layout(2, 3), Layout(1, 0), Layout(2, 2, micro_batch_size=1), Layout(4, 3, micro_batch_size=1), Layout(1, 3)],
)

PAIRS = tuple(
    layouts
    for command in ("train_rm", "train_dpo")
    for layouts in (
        [Layout(1, 1, command=command)],
        [Layout(2, 2, command=command)],
        [Layout(2, 3, "bf16", command=command)],
        [
            Layout(2, 3, command=command),
            Layout(1, 0, command=command),
            Layout(2, 1, micro_batch_size=1, command=command),
        ],
    )
) + ([Layout(2, 2, command="train_dpo", precomputes=True)],)
RUNS = {"rows": SAME_LAYOUT + BY_TURNS, "pairs": PAIRS}


@dataclass
class Campaign:
    """The accounts of all runs, and of the bits flipped in their last checkpoints. `of`: a name of `RUNS`."""

    seed: int
    of: str
    runs: list[Account] = field(default_factory=list)
    num_flips: int = 0
    num_flips_found: int = 0
    seconds: float = 0.0

    @property
    def num_kills(self) -> int:
        return sum(run.num_kills for run in self.runs)

    @property
    def num_faults(self) -> int:
        return sum(sum(run.kinds.values()) + sum(run.damages.values()) for run in self.runs)

    @property
    def problems(self) -> list[str]:
        unseen = self.num_flips - self.num_flips_found
        found = [f"{run.name}: {problem}" for run in self.runs for problem in run.problems]
        return found + ([f"{unseen} flipped bits were not found"] if unseen else [])


def run_campaign(
    folder: Path, num_faults: int, seed: int, of: str = "rows", num_at_a_time: int = 1
) -> Iterator[Campaign]:
    """Runs on all layouts by turns until so many faults are made; yields after each run.

    Args:
        of: "rows" (train_sft) or "pairs" (train_rm and train_dpo).
        num_at_a_time: runs broken side by side.
    """
    bench, campaign = Bench(folder), Campaign(seed, of)
    start = time.monotonic()
    with ThreadPoolExecutor(num_at_a_time) as pool:
        numbers = itertools.count()
        runs = {pool.submit(_broken_run, bench, folder, campaign, next(numbers)) for _ in range(num_at_a_time)}
        while runs:
            done, runs = wait(runs, return_when=FIRST_COMPLETED)
            for future in done:
                account, out, rng = future.result()
                campaign.runs.append(account)
                _flip_bits(campaign, out / "checkpoints", rng)
            campaign.seconds = time.monotonic() - start
            yield campaign
            if campaign.num_faults < num_faults:
                runs |= {pool.submit(_broken_run, bench, folder, campaign, next(numbers)) for _ in done}


def _broken_run(bench: Bench, folder: Path, campaign: Campaign, number: int) -> tuple[Account, Path, random.Random]:
    """A run's account, its folder, and the random stream that made its faults."""
    layouts = RUNS[campaign.of][number % len(RUNS[campaign.of])]
    out, rng = folder / f"run{number:04d}", random.Random(f"{campaign.seed} {number}")
    return BrokenRun(bench, layouts, out, rng).run(FAULTS_A_RUN, FAULTS_AT_THE_END_OF_A_RUN), out, rng


def _flip_bits(campaign: Campaign, checkpoints: Path, rng: random.Random) -> None:
    """One at a time, in every file of the newest checkpoint."""
    newest, _ = CheckpointStore(checkpoints).newest_whole()
    assert newest is not None
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for _ in range(FLIPS_A_FILE):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            campaign.num_flips += 1
            campaign.num_flips_found += bool(verify(newest))
        path.write_bytes(whole)


def totals(campaign: Campaign) -> dict[str, Counter[str]]:
    """Over all runs: faults by kind, damages by kind, how the ranks ended that were not killed."""
    kinds: Counter[str] = Counter()
    damages: Counter[str] = Counter()
    survivors: Counter[str] = Counter()
    for run in campaign.runs:
        kinds.update(run.kinds)
        damages.update(run.damages)
        survivors.update({str(code): count for code, count in run.survivors_ended_with.items()})
    return {"faults": kinds, "damages": damages, "survivors_ended_with": survivors}
