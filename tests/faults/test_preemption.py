"""SIGTERM or SIGUSR1 on any rank: all save and leave with code 75, and the run goes on to what it would have been."""

from __future__ import annotations

import signal
import time

import pytest

from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.exit_codes import EXIT_CODE_PREEMPTED, EXIT_CODE_RANK_LOST
from openrlhf.tracking.metrics_file import read_records
from openrlhf.trainer.callbacks.preemption import SECONDS_OF_ONE_REQUEST
from tests.faults.bench import SECONDS_FOR_A_RUN, Layout, differences, outcome_of
from tests.faults.breaks import Moment
from tests.faults.jobs import Job

LAYOUT = Layout(2, 2)


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 1)])
def test_a_signal_to_one_rank_saves_and_the_run_goes_on(bench, tmp_path, number, rank):
    out = tmp_path / "run"
    with Job(bench.words(LAYOUT, out, ckpt__save_steps=1000), 2, tmp_path / "log") as job:
        Moment(7, 0.0).wait(job, out)
        job.send(number, rank)
        assert job.wait(SECONDS_FOR_A_RUN) == [EXIT_CODE_PREEMPTED] * 2, job.words_said()[-3000:]
    last_step = read_records(out / "metrics.jsonl")[-1]["global_step"]
    newest, problems = CheckpointStore(out / "checkpoints").newest_whole()
    assert newest is not None
    assert (newest.name, problems) == (f"global_step{last_step}", [])
    with Job(bench.words(LAYOUT, out), 2, tmp_path / "log") as job:
        assert job.wait(SECONDS_FOR_A_RUN) == [0, 0], job.words_said()[-3000:]
    assert differences(outcome_of(out), bench.unbroken(LAYOUT), is_same_layout=True) == []


def test_asking_again_means_now(bench, tmp_path):
    """The save hangs; the second signal does not wait for it, and what was saved before is whole."""
    out = tmp_path / "run"
    hang = "save.begun:2:hang"
    with Job(bench.words(Layout(1, 1), out, ckpt__save_steps=3), 1, tmp_path / "log", {0: hang}) as job:
        Moment(6, 1.0).wait(job, out)
        job.send(signal.SIGTERM, 0)
        time.sleep(SECONDS_OF_ONE_REQUEST + 0.3)
        assert job.wait(0.0) is None, "one signal alone does not end a process that is saving"
        job.send(signal.SIGTERM, 0)
        assert job.wait(5.0) == [EXIT_CODE_PREEMPTED]
    newest, _ = CheckpointStore(out / "checkpoints").newest_whole()
    assert newest is not None
    assert newest.name == "global_step3"


def test_saving_by_minutes(bench, tmp_path):
    """With a fraction of a second between saves every step is saved; by steps none would be."""
    out = tmp_path / "run"
    words = bench.words(LAYOUT, out, ckpt__save_steps=-1, ckpt__save_minutes=1e-5, ckpt__max_num=100)
    with Job(words, 2, tmp_path / "log") as job:
        Moment(5, 0.0).wait(job, out)
    steps = sorted(path.name for path in CheckpointStore(out / "checkpoints").whole())
    assert {"global_step1", "global_step2", "global_step3"} <= set(steps), steps


def test_a_storm_of_signals_loses_nothing(bench, tmp_path):
    """Many signals to both ranks, some of which mean now: the run goes on from what is whole, to the bit."""
    out = tmp_path / "run"
    with Job(bench.words(LAYOUT, out), 2, tmp_path / "log") as job:
        Moment(9, 0.0).wait(job, out)
        for number in range(12):
            job.send((signal.SIGTERM, signal.SIGUSR1)[number % 2], number // 2 % 2)
            time.sleep(0.15)
        codes = job.wait(SECONDS_FOR_A_RUN)
        assert codes is not None, job.words_said()[-3000:]
        assert set(codes) <= {EXIT_CODE_PREEMPTED, EXIT_CODE_RANK_LOST}, (codes, job.words_said()[-3000:])
    with Job(bench.words(LAYOUT, out), 2, tmp_path / "log") as job:
        assert job.wait(SECONDS_FOR_A_RUN) == [0, 0], job.words_said()[-3000:]
    assert differences(outcome_of(out), bench.unbroken(LAYOUT), is_same_layout=True) == []
