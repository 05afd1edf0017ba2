"""Real launchers: torchrun restarts a job of which a rank was killed; a signal to a launcher saves the run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.tracking.metrics_file import read_records
from tests.faults.bench import SECONDS_FOR_A_RUN, Layout, differences, outcome_of
from tests.faults.broken_run import SECONDS_TO_END_AS_ORPHANS
from tests.faults.launched import Launched, deepspeed, torchrun
from tests.helpers.slow import slow

LAYOUT = Layout(2, 2)
SECONDS_TO_LEAVE = 60.0


def last_step(out: Path) -> int:
    path = out / "metrics.jsonl"
    return read_records(path)[-1]["global_step"] if path.exists() and path.stat().st_size else 0


@pytest.mark.slow
def test_torchrun_restarts_a_job_of_which_a_rank_was_killed(bench, tmp_path):
    out = tmp_path / "run"
    with Launched(torchrun(2, max_restarts=1), bench.words(LAYOUT, out), tmp_path / "log") as job:
        job.wait_until(lambda: last_step(out) >= 5, SECONDS_FOR_A_RUN)
        os.kill(job.ranks()[1], signal.SIGKILL)
        code = job.launcher.wait(SECONDS_FOR_A_RUN)
        said = job.said()
    assert code == 0, said[-5000:]
    assert "going on from" in said, "the second start must go on from a checkpoint"
    assert differences(outcome_of(out), bench.unbroken(LAYOUT), is_same_layout=True) == []


@pytest.mark.slow
def test_torchrun_restarts_a_job_of_which_one_rank_ran_out_of_memory_with_smaller_micro_batches(bench, tmp_path):
    out = tmp_path / "run"
    words = bench.words(Layout(2, 3), out, train__loss="tests.faults.short_of_memory:ShortOnce")
    with Launched(torchrun(2, max_restarts=1), words, tmp_path / "log") as job:
        code = job.launcher.wait(SECONDS_FOR_A_RUN)
        said = job.said()
    assert code == 0, said[-5000:]
    assert "while the other ranks were in a collective that cannot be left" in said
    assert "memory.json: micro-batches are cut to 1/2" in said
    losses = [record["loss"] for record in read_records(out / "metrics.jsonl") if "loss" in record]
    unbroken = [record["loss"] for record in bench.unbroken(LAYOUT).records if "loss" in record]
    assert losses == pytest.approx(unbroken, rel=1e-5)


def to_torchrun(job: Launched) -> None:
    """It hands the signal on to every rank."""
    job.launcher.send_signal(signal.SIGTERM)


def to_the_group(job: Launched) -> None:
    """As schedulers and shells do it: the deepspeed command alone would hand nothing on."""
    os.killpg(job.launcher.pid, signal.SIGTERM)


@pytest.mark.parametrize(("launcher", "ask"), [(torchrun, to_torchrun), *slow([(deepspeed, to_the_group)])])
def test_a_launcher_that_is_asked_to_leave_leaves_a_saved_run(bench, tmp_path, launcher, ask):
    out = tmp_path / "run"
    with Launched(launcher(2), bench.words(LAYOUT, out, ckpt__save_steps=1000), tmp_path / "log") as job:
        job.wait_until(lambda: last_step(out) >= 5, SECONDS_FOR_A_RUN)
        assert sorted(job.ranks()) == [0, 1]
        ask(job)
        assert job.have_ranks_left(SECONDS_TO_LEAVE), job.said()[-5000:]
        code = job.launcher.wait(SECONDS_TO_LEAVE)
        said = job.said()
    assert "asked to leave after step" in said, said[-5000:]
    assert code != 0, "an unfinished run must not look like a complete one"
    newest, problems = CheckpointStore(out / "checkpoints").newest_whole()
    assert newest is not None
    assert (newest.name, problems) == (f"global_step{last_step(out)}", [])


@pytest.mark.parametrize("launcher", [torchrun, *slow([deepspeed])])
def test_ranks_end_with_a_launcher_that_was_killed_and_the_run_goes_on(bench, tmp_path, launcher):
    out = tmp_path / "run"
    with Launched(launcher(2), bench.words(LAYOUT, out), tmp_path / "log") as job:
        job.wait_until(lambda: last_step(out) >= 5, SECONDS_FOR_A_RUN)
        parents = {
            int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in job.ranks().values()
        }
        for pid in parents | {job.launcher.pid}:  # deepspeed starts its ranks by a process between
            os.kill(pid, signal.SIGKILL)
        assert job.have_ranks_left(SECONDS_TO_END_AS_ORPHANS), job.said()[-5000:]
    assert "is gone: the rank ends and saves nothing" in job.said()
    with Launched(launcher(2), bench.words(LAYOUT, out), tmp_path / "log2") as job:
        code = job.launcher.wait(SECONDS_FOR_A_RUN)
    assert code == 0, job.said()[-5000:]
    assert differences(outcome_of(out), bench.unbroken(LAYOUT), is_same_layout=True) == []
