"""A disk that is full at each save of a run in turn, and one on which no checkpoint fits any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.exit_codes import EXIT_CODE_USER_ERROR
from tests.faults.bench import BATCH_SIZE, SECONDS_FOR_A_RUN, Layout, differences, outcome_of
from tests.faults.jobs import Job

NUM_STEPS = 4
SAVES = range(1, NUM_STEPS + 2)  # one after each step; the last step is saved a second time, as finished
LAYOUT = Layout(1, 1)
LESS_THAN_THE_WEIGHTS_BYTES = 100_000


def launch(bench, out: Path, fault_point: str = "", largest_file_bytes: int | None = None) -> tuple[list[int], str]:
    """Exit codes, and all that was said by a run of few steps, saved after each."""
    words = bench.words(LAYOUT, out, data__max_samples=NUM_STEPS * BATCH_SIZE, ckpt__save_steps=1)
    with Job(words, 1, out / "log", {0: fault_point} if fault_point else {}, largest_file_bytes) as job:
        return job.wait(SECONDS_FOR_A_RUN), job.words_said()


def newest(out: Path) -> tuple[str, list[str]]:
    """Name of the newest whole checkpoint, and what is wrong with newer ones."""
    path, problems = CheckpointStore(out / "checkpoints").newest_whole()
    assert path is not None, problems
    return path.name, problems


@pytest.fixture(scope="module")
def unbroken(bench, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    codes, said = launch(bench, out)
    assert codes == [0], said[-3000:]
    return outcome_of(out)


@pytest.mark.parametrize("nth", SAVES)
def test_a_disk_full_at_one_save_does_not_stop_the_run(bench, unbroken, tmp_path, nth):
    codes, said = launch(bench, tmp_path, f"save.half_of_tensors_written:{nth}:disk_full")
    assert codes == [0], said[-3000:]
    assert "No space left on device" in said, "the failed save must be reported"
    assert newest(tmp_path) == (f"global_step{NUM_STEPS}", [])
    assert differences(outcome_of(tmp_path), unbroken, is_same_layout=True) == []


def test_a_run_whose_last_checkpoint_found_no_room_has_finished_with_its_export(bench, tmp_path):
    launch(bench, tmp_path, f"save.manifest_written:{SAVES[-1]}:disk_full")
    written_at = (tmp_path / "model.safetensors").stat().st_mtime_ns
    codes, said = launch(bench, tmp_path)
    assert codes == [0], said[-3000:]
    assert "this run has finished" in said, said[-3000:]
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written_at


def test_a_disk_full_while_the_model_is_exported_costs_the_export_alone(bench, unbroken, tmp_path):
    codes, said = launch(bench, tmp_path, "export.half_of_shard_written:1:disk_full")
    assert codes == [EXIT_CODE_USER_ERROR], said[-3000:]
    assert "No space left on device" in said
    assert "Traceback" not in said, said[-3000:]
    assert newest(tmp_path) == (f"global_step{NUM_STEPS}", [])
    codes, said = launch(bench, tmp_path)
    assert codes == [0], said[-3000:]
    assert differences(outcome_of(tmp_path), unbroken, is_same_layout=True) == []


def test_a_limit_of_file_sizes_below_the_weights_is_refused_at_the_start(bench, unbroken, tmp_path):
    codes, said = launch(bench, tmp_path, "save.begun:2")
    assert codes == [-9], said[-3000:]
    assert newest(tmp_path) == ("global_step1", [])
    codes, said = launch(bench, tmp_path, largest_file_bytes=LESS_THAN_THE_WEIGHTS_BYTES)
    assert codes == [EXIT_CODE_USER_ERROR], said[-3000:]
    assert "the limit of this process is 100,000" in said
    assert "Nothing is trained" in said
    assert newest(tmp_path) == ("global_step1", [])
    codes, said = launch(bench, tmp_path)
    assert codes == [0], said[-3000:]
    assert differences(outcome_of(tmp_path), unbroken, is_same_layout=True) == []
