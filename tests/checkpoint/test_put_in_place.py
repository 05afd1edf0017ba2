"""At every named instant of a save: `latest` names a checkpoint that is there, and a whole one is there."""

from pathlib import Path

import pytest

from openrlhf.checkpoint import store as store_module
from openrlhf.checkpoint.manifest import looks_whole
from openrlhf.checkpoint.store import CheckpointStore


@pytest.fixture
def saved_under_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, list[str]]]:
    """(instant, what `latest` names, names of whole checkpoints) while step 2 takes the place of step 1."""
    store = CheckpointStore(tmp_path, max_num=1)
    _save(store, 1)
    seen: list[tuple[str, str | None, list[str]]] = []

    def look(instant: str) -> None:
        whole = [path.name for path in store.candidates() if looks_whole(path)]
        seen.append((instant, (tmp_path / "latest").read_text(), whole))

    monkeypatch.setattr(store_module, "fault_point", look)
    _save(store, 2)
    return seen


def test_latest_names_a_checkpoint_that_is_there(saved_under_watch: list) -> None:
    assert [instant for instant, latest, whole in saved_under_watch if latest not in whole] == []


def test_the_newer_is_in_place_before_the_older_goes(saved_under_watch: list) -> None:
    assert [instant for instant, _, whole in saved_under_watch if not whole] == []
    assert saved_under_watch[0][2] == ["global_step1"]
    assert saved_under_watch[-1][2] == ["global_step2"]


def _save(store: CheckpointStore, step: int) -> None:
    staging = store.begin(step, size_bytes=10)
    (staging / "weights").write_text("weights")
    store.put_in_place(staging)
