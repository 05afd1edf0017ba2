"""Ranks save and resume together; one that fails takes nobody with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint import saving_cases
from tests.helpers.ranks import RankPool

PoolOf = Callable[[int], RankPool]


def test_a_run_goes_on_from_the_newest_checkpoint(pool_of: PoolOf, tmp_path: Path) -> None:
    pool_of(2).run(saving_cases.save_twice, str(tmp_path))
    for progress, client_state, is_random_restored, notes in pool_of(2).run(saving_cases.resume, str(tmp_path)):
        assert (progress.optimizer_step, progress.consumed_samples) == (2, 16)
        assert client_state == {"note": "step 2"}
        assert is_random_restored
        assert notes == []


def test_on_another_number_of_ranks_random_generators_are_said_not_to_be_restored(
    pool_of: PoolOf, tmp_path: Path
) -> None:
    pool_of(2).run(saving_cases.save_twice, str(tmp_path))
    ((progress, _, is_random_restored, _),) = pool_of(1).run(saving_cases.resume, str(tmp_path))
    assert progress.optimizer_step == 2
    assert not is_random_restored


@pytest.mark.parametrize("damage", ["cut", "missing", "flipped"])
def test_a_damaged_file_is_named_on_all_ranks_and_the_one_before_is_used(
    damage: str, pool_of: PoolOf, tmp_path: Path
) -> None:
    pool_of(2).run(saving_cases.save_twice, str(tmp_path))
    path = tmp_path / "global_step2" / "optim_states_rank00001.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(
            content[:middle] + (b"" if damage == "cut" else bytes([content[middle] ^ 1]) + content[middle + 1 :])
        )
    for progress, _, _, notes in pool_of(2).run(saving_cases.resume, str(tmp_path)):
        assert progress.optimizer_step == 1
        assert len(notes) == 1
        assert str(path) in notes[0]


@pytest.mark.parametrize("failing_rank", [0, 1])
@pytest.mark.parametrize("point", ["save.half_of_tensors_written", "save.copied", "save.random_states_written"])
def test_a_rank_that_cannot_write_is_reported_on_all_and_the_run_goes_on(
    failing_rank: int, point: str, pool_of: PoolOf, tmp_path: Path
) -> None:
    results = pool_of(2).run(saving_cases.save_with_a_failing_rank, str(tmp_path), failing_rank, point)
    for failed, after, names in results:
        assert failed.num_failures_in_a_row == 1
        assert any(f"rank {failing_rank}" in problem and "No space left" in problem for problem in failed.problems)
        assert (after.problems, after.num_failures_in_a_row) == ((), 0)
        assert names == ["global_step1", "global_step3"]


def test_a_disk_without_room_is_reported_on_all_ranks(pool_of: PoolOf, tmp_path: Path) -> None:
    for report in pool_of(2).run(saving_cases.save_without_room, str(tmp_path)):
        assert report.num_failures_in_a_row == 1
        assert "GiB are free" in report.problems[0]


def test_a_machine_without_memory_for_copies_writes_while_training_waits_and_says_so_once(
    pool_of: PoolOf, tmp_path: Path
) -> None:
    for reports, there, held_bytes, is_whole in pool_of(2).run(saving_cases.save_without_memory, str(tmp_path)):
        assert [report.problems for report in reports] == [(), ()]
        assert [len(report.notices) for report in reports] == [1, 0]
        assert "copies of the states of its 2 ranks would take 0.00 GiB" in reports[0].notices[0]
        assert "saves are written while training waits" in reports[0].notices[0]
        assert there == ["global_step1", "global_step2"], "in place when `save` returns"
        assert held_bytes == 0
        assert is_whole


def test_what_is_saved_is_the_moment_of_saving_though_training_goes_on(pool_of: PoolOf, tmp_path: Path) -> None:
    at_save, *_ = pool_of(2).run(saving_cases.save_and_train_on, str(tmp_path))
    for got in pool_of(2).run(saving_cases.whole_state_after_resume, str(tmp_path)):
        assert [key for key in at_save if not torch.equal(got[key], at_save[key])] == []


def test_the_loop_does_not_wait_for_the_disk(pool_of: PoolOf, tmp_path: Path) -> None:
    for seconds_in_save, seconds_in_wait in pool_of(2).run(saving_cases.time_a_slow_save, str(tmp_path)):
        assert seconds_in_save < 0.5 * seconds_in_wait


def test_another_run_s_checkpoint_is_refused_on_all_ranks(pool_of: PoolOf, tmp_path: Path) -> None:
    pool_of(2).run(saving_cases.save_twice, str(tmp_path))
    for message in pool_of(2).run(saving_cases.error_of_resuming_with_another_seed, str(tmp_path)):
        assert "--train.seed" in message
        assert "--ckpt.allow_mismatch" in message


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_the_exported_model_is_the_trained_one(stage: int, kind: str, pool_of: PoolOf, tmp_path: Path) -> None:
    for is_same in pool_of(2).run(saving_cases.train_and_export, stage, kind, str(tmp_path)):
        assert is_same


def test_a_rank_0_that_cannot_export_leaves_no_rank_waiting(pool_of: PoolOf, tmp_path: Path) -> None:
    for message in pool_of(2).run(saving_cases.error_of_exporting_to_a_full_disk, str(tmp_path)):
        assert "No space left" in message
