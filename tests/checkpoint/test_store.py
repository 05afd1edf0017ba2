"""The store keeps what it must, removes what it may, and finds the newest whole checkpoint."""

import errno
import json
import shutil
from pathlib import Path

import pytest

from openrlhf.checkpoint.store import EXPORT_SUFFIX, BestCheckpoint, CheckpointStore
from openrlhf.errors import UserError


def _save(store: CheckpointStore, step: int, eval_loss: float | None = None, text: str = "weights") -> Path:
    staging = store.begin(step, size_bytes=10)
    (staging / "weights").write_text(text)
    path, problems = store.put_in_place(staging, eval_loss=eval_loss)
    assert problems == []
    return path


def _steps(store: CheckpointStore) -> list[int]:
    return [int(path.name.removeprefix("global_step").removesuffix(store.suffix)) for path in store.candidates()]


def test_newest_is_found_and_latest_names_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (9, 10):
        _save(store, step)
    assert store.newest_whole() == (tmp_path / "global_step10", [])
    assert (tmp_path / "latest").read_text() == "global_step10"


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").newest_whole() == (None, [])


def test_oldest_goes_beyond_the_number(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=2)
    for step in (1, 2, 3, 4):
        _save(store, step)
    assert _steps(store) == [4, 3]


def test_oldest_goes_beyond_the_bytes_but_never_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=9, max_bytes=1)
    for step in (1, 2, 3):
        _save(store, step)
    assert _steps(store) == [3]


def test_bytes_that_fit_stay(tmp_path: Path) -> None:
    size_bytes = sum(path.stat().st_size for path in _save(CheckpointStore(tmp_path), 1).iterdir())
    store = CheckpointStore(tmp_path, max_num=9, max_bytes=2 * size_bytes + size_bytes // 2)
    for step in (2, 3, 4):
        _save(store, step)
    assert _steps(store) == [4, 3]


def test_limits_given_later_count_from_the_next_save_on(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=3)
    for step in (1, 2, 3):
        _save(store, step)
    store.set_limits(max_num=2)
    assert _steps(store) == [3, 2, 1]
    _save(store, 4)
    assert _steps(store) == [4, 3]
    store.set_limits(max_num=9, max_bytes=1)
    _save(store, 5)
    assert _steps(store) == [5]
    store.set_limits(max_num=9)
    _save(store, 6)
    assert _steps(store) == [6, 5]


def test_checkpoints_of_an_earlier_run_move_with_all_that_speaks_of_them(tmp_path: Path) -> None:
    store, models = CheckpointStore(tmp_path), CheckpointStore(tmp_path, suffix=EXPORT_SUFFIX)
    assert store.move_to_earlier_run() is None
    for number in (1, 2):
        _save(store, 1, eval_loss=2.0)
        _save(models, 1)
        (tmp_path / "metrics.jsonl").touch()
        assert store.move_to_earlier_run() == tmp_path / f"earlier_run_{number}"
        names = {path.name for path in (tmp_path / f"earlier_run_{number}").iterdir()}
        assert names == {"global_step1", "global_step1_hf", "latest", "latest_hf", "best.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"earlier_run_1", "earlier_run_2", "metrics.jsonl"}


def test_checkpoints_of_the_run_that_begins_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, run_id in ((1, "mine"), (2, None), (3, "theirs")):
        staging = store.begin(step, size_bytes=10)
        store.put_in_place(staging, identity={"run_id": run_id})
    assert store.move_to_earlier_run("mine") == tmp_path / "earlier_run_1"
    assert _steps(store) == [1]
    assert (tmp_path / "latest").is_file()
    assert {path.name for path in (tmp_path / "earlier_run_1").iterdir()} == {"global_step2", "global_step3"}
    assert store.move_to_earlier_run("mine") is None


def test_best_stays_with_its_loss_also_for_the_next_process(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.5), (3, 2.0), (4, None), (5, 1.75)):
        _save(CheckpointStore(tmp_path, max_num=1), step, loss)
    store = CheckpointStore(tmp_path, max_num=1)
    assert _steps(store) == [5, 2]
    assert store.best() == BestCheckpoint("global_step2", 1.5)


def test_a_better_one_takes_its_place(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=1)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.0), (4, 5.0)):
        _save(store, step, loss)
    assert _steps(store) == [4, 3]


def test_exported_models_are_counted_apart(tmp_path: Path) -> None:
    states, models = CheckpointStore(tmp_path, max_num=2), CheckpointStore(tmp_path, max_num=1, suffix="_hf")
    for step in (1, 2, 3):
        _save(states, step)
        _save(models, step)
    assert (_steps(states), _steps(models)) == ([3, 2], [3])
    assert (tmp_path / "latest").read_text() == "global_step3"


def test_damaged_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 1)
    (_save(store, 2) / "weights").write_text("weighty")
    path, problems = store.newest_whole()
    assert path == tmp_path / "global_step1"
    assert "global_step2/weights" in problems[0]


def test_a_checkpoint_copied_over_another_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        _save(store, step)
    shutil.rmtree(tmp_path / "global_step3")
    shutil.copytree(tmp_path / "global_step1", tmp_path / "global_step3")
    path, (problem,) = CheckpointStore(tmp_path).newest_whole()
    assert path == tmp_path / "global_step2"
    assert "global_step3 holds the checkpoint of step 1" in problem


def test_a_checkpoint_copied_over_another_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=2)
    for step in (1, 2):
        _save(store, step)
    shutil.copytree(tmp_path / "global_step1", tmp_path / "global_step3")
    _save(store, 4)
    assert _steps(store) == [4, 2]


def test_a_damaged_one_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=2)
    for step in (1, 2):
        _save(store, step)
    (tmp_path / "global_step2" / "weights").write_text("weighty")
    store.newest_whole()
    _save(store, 3)
    assert _steps(store) == [3, 1]


def test_the_one_just_written_stays_though_a_higher_step_is_about(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=1)
    _save(store, 30)
    _save(store, 20)
    assert _steps(store) == [20]


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 1, text="old")
    assert (_save(store, 1, text="new") / "weights").read_text() == "new"
    assert store.newest_whole()[1] == []


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(OSError, match="needs about 1048576.00 GiB") as raised:
        store.begin(1, size_bytes=1 << 50)
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_crash_are_cleaned_and_nothing_else(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 1)
    for name in (
        ".writing-global_step2",
        ".removing-global_step0",
        ".writing-global_step2_hf",
        ".writing-mine",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / ".writing-latest.0a1b2c3d").write_text("glob")
    assert len(store.clean_leftovers()) == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"global_step1", "latest", ".writing-global_step2_hf", ".writing-mine"}


def test_what_was_moved_away_but_not_replaced_comes_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 1).rename(tmp_path / ".replaced-global_step1")
    store.clean_leftovers()
    assert store.newest_whole() == (tmp_path / "global_step1", [])


def test_a_broken_best_file_counts_as_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 1, 2.0)
    (tmp_path / "best.json").write_text('{"name": "glo')
    assert store.best() is None
    _save(store, 2, 3.0)
    assert json.loads((tmp_path / "best.json").read_text())["eval_loss"] == 3.0


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path):
    store = CheckpointStore(tmp_path, max_num=1)
    for step, eval_loss in ((1, 0.5), (2, float("nan")), (3, 0.9)):
        staging = store.begin(step, size_bytes=1)
        (staging / "weights").write_text(str(step))
        store.put_in_place(staging, eval_loss=eval_loss)
    assert store.best().name == "global_step1"
    assert (tmp_path / "global_step1").is_dir()


def test_a_store_that_would_keep_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_num 0: a store keeps at least the newest checkpoint"):
        CheckpointStore(tmp_path, max_num=0)
