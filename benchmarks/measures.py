"""One measurement of one contestant, for each kind of case. Times are wall clock, seen from outside the process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import Case, job_of
from benchmarks.contestants import Job, Ours, Trl
from benchmarks.materials import Materials, RowFacts
from benchmarks.process import ProcessRun

Figures = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]


class WrongTokens(RuntimeError):
    """A contestant did not train the tokens that stand in the file."""


class Bench:
    """The contestants in a work folder. `trl` is None where ours runs alone."""

    def __init__(self, work: Path, trl_python: Path | None):
        self.work = work
        self.materials = Materials(work)
        self.ours = Ours(work)
        self.trl = Trl(work, trl_python) if trl_python else None

    def contestants(self, case: Case) -> list[str]:
        return [name for name in case.contestants if self.trl is not None or name in case.ours]

    def run(self, case: Case, contestant: str, job: Job, name: str | None = None, **more: Any) -> ProcessRun:
        """A run of `contestant` with the case's settings."""
        name = name or f"{case.name}_{contestant}"
        if contestant in case.ours:
            return self.ours.run(job, case.ours[contestant], name, **more)
        assert self.trl is not None, f"{contestant} needs TRL's environment"
        return self.trl.run(job, case.trl[contestant], name, **more)


# --- speed and memory ------------------------------------------------------------------------------------------------


def measure_speed(bench: Bench, case: Case, contestant: str) -> Figures:
    job, facts = job_of(case, bench.materials)
    return speed_of(bench.run(case, contestant, job), case.warm_up_steps, facts)


def speed_of(run: ProcessRun, warm_up_steps: int, facts: RowFacts, check_tokens: bool = True) -> Figures:
    """Tokens/s from the end of the last warm-up step to the end of the last step; padding is no token.

    Raises WrongTokens where the steps of the whole pass do not add up to the tokens of the file.
    """
    trained = [step["num_tokens"] for step in run.steps]
    if check_tokens and sum(trained) != facts.num_tokens:
        raise WrongTokens(f"{sum(trained):,} tokens were trained, {facts.path.name} holds {facts.num_tokens:,}")
    seconds = run.step_seconds[-1] - run.step_seconds[warm_up_steps - 1]
    num_tokens = sum(trained[warm_up_steps:])
    return {
        "tokens_per_second": num_tokens / seconds,
        "tokens_per_cpu_second": num_tokens / (run.cpu_seconds[-1] - run.cpu_seconds[warm_up_steps - 1]),
        "num_tokens": num_tokens,
        "timed_seconds": seconds,
        "seconds_to_first_step": run.step_seconds[0],
        "peak_bytes": run.peak_bytes,
        "seconds_of_process": run.seconds,
    }


# --- start and preparation -------------------------------------------------------------------------------------------


def measure_start(bench: Bench, case: Case, contestant: str) -> Figures:
    """Launch to the end of the first optimizer step, data cached; the process is killed there."""
    job, _ = job_of(case, bench.materials)
    return {"seconds_to_first_step": _seconds_to_first_step(bench, case, contestant, job)}


def warm_up_start(bench: Bench, case: Case) -> None:
    """Caches data and compiles operators."""
    for contestant in bench.contestants(case):
        measure_start(bench, case, contestant)


def measure_preparation(bench: Bench, case: Case, contestant: str) -> Figures:
    """Launch to the end of the first step with all rows (cold, then cached), and with a few rows (cached).

    What the rows cost is the difference.
    """
    job, _ = job_of(case, bench.materials)
    cache = bench.work / f"cache_of_{case.name}"
    shutil.rmtree(cache, ignore_errors=True)
    cold = _seconds_to_first_step(bench, case, contestant, job, cache_dir=cache)
    cached = _seconds_to_first_step(bench, case, contestant, job, cache_dir=cache)
    few = _seconds_to_first_step(bench, case, contestant, _few_rows_job(bench, case, job))
    shutil.rmtree(cache, ignore_errors=True)
    return {
        "cold_seconds_to_first_step": cold,
        "cached_seconds_to_first_step": cached,
        "few_rows_seconds_to_first_step": few,
        "cold_preparation_seconds": cold - few,
        "cached_preparation_seconds": cached - few,
    }


def warm_up_preparation(bench: Bench, case: Case) -> None:
    job, _ = job_of(case, bench.materials)
    for contestant in bench.contestants(case):
        _seconds_to_first_step(bench, case, contestant, _few_rows_job(bench, case, job))


def _few_rows_job(bench: Bench, case: Case, job: Job) -> Job:
    return replace(job, rows=bench.materials.rows(case.facts["few_rows"]).path)


def _seconds_to_first_step(bench: Bench, case: Case, contestant: str, job: Job, **more: Any) -> float:
    return bench.run(case, contestant, job, stop_after_steps=1, **more).step_seconds[0]


# --- resuming --------------------------------------------------------------------------------------------------------


def warm_up_resume(bench: Bench, case: Case) -> None:
    """Makes a checkpoint after one step, and from it one for each contestant (see `resume_checkpoint`)."""
    job, _ = job_of(case, bench.materials)
    first = bench.work / "resume" / "made"
    shutil.rmtree(first.parent, ignore_errors=True)
    settings = {**next(iter(case.ours.values())), "ckpt.path": first, "ckpt.save_steps": 1}
    bench.ours.run(job, settings, "resume_made", stop_after_steps=3)  # by then the first save is in place
    for contestant, consumed_samples in case.facts["consumed_samples"].items():
        words = [first / "global_step1", _resume_folder(bench, contestant), consumed_samples, case.batch_size]
        code = [sys.executable, "-m", "benchmarks.resume_checkpoint", *(str(word) for word in words)]
        subprocess.run(code, check=True, cwd=ROOT)
        measure_resume(bench, case, contestant)


def measure_resume(bench: Bench, case: Case, contestant: str) -> Figures:
    """Launch to the end of the first step after the checkpoint; the process is killed there."""
    job, _ = job_of(case, bench.materials)
    settings = {**case.ours[contestant], "ckpt.path": _resume_folder(bench, contestant), "ckpt.load_enable": True}
    run = bench.ours.run(job, settings, f"resume_{contestant}", stop_after_steps=1)
    expected = case.facts["consumed_samples"][contestant] + case.batch_size
    found = run.steps[0]["consumed_samples"]
    assert found == expected, f"went on at sample {found - case.batch_size:,}, not {expected - case.batch_size:,}"
    return {"seconds_to_first_step": run.step_seconds[0]}


def _resume_folder(bench: Bench, contestant: str) -> Path:
    return bench.work / "resume" / contestant


# --- saving ----------------------------------------------------------------------------------------------------------


def measure_saving(bench: Bench, case: Case, contestant: str) -> Figures:
    """How long the loop stands still: the time between the two steps around a save, less that of a step without one.

    `lost_seconds_a_save` also counts what the writing beside the training costs the steps that follow.
    """
    job, _ = job_of(case, bench.materials)
    name = f"{case.name}_{contestant}"
    run = bench.run(case, contestant, job, name)
    every = case.ours[contestant]["ckpt.save_steps"]
    checkpoints = sorted((bench.work / "runs" / name / "checkpoints").glob("global_step*"))
    size_bytes = sum(path.stat().st_size for path in checkpoints[-1].rglob("*") if path.is_file())
    shutil.rmtree(bench.work / "runs" / name)
    return {**stalls_of(run.step_seconds, every), "checkpoint_bytes": size_bytes, "peak_bytes": run.peak_bytes}


def stalls_of(step_seconds: list[float], save_every: int) -> Figures:
    """Args: step_seconds: when each step ended; saves follow every `save_every`-th."""
    gaps = {step: after - before for step, (before, after) in enumerate(pairwise(step_seconds), 1)}
    with_save = [gap for step, gap in gaps.items() if step % save_every == 0]
    before_saves = [gap for step, gap in gaps.items() if step < save_every]  # nothing is written beside these
    usual = median(before_saves)
    since_first_save = [gap for step, gap in gaps.items() if step >= save_every]
    return {
        "first_stall_seconds": with_save[0] - usual,  # memory for the copy is taken then
        "later_stall_seconds": median(gap - usual for gap in with_save[1:]),
        "usual_step_seconds": usual,
        "lost_seconds_a_save": (sum(since_first_save) - len(since_first_save) * usual) / len(with_save),
    }


MEASURES: dict[str, Callable[[Bench, Case, str], Figures]] = {
    "speed": measure_speed,
    "start": measure_start,
    "preparation": measure_preparation,
    "resume": measure_resume,
    "saving": measure_saving,
}
WARM_UPS: dict[str, Callable[[Bench, Case], None]] = {
    "start": warm_up_start,
    "preparation": warm_up_preparation,
    "resume": warm_up_resume,
}


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all: a suite may be killed at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)
