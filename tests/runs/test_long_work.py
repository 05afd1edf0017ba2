"""Saves and exports may take longer than `--train.hang_timeout_minutes`: a rank says so to those that watch it."""

from __future__ import annotations

import pytest

from tests.helpers.workbench import flags, save_model, save_rows
from tests.runs.cases import moments_of_writing


@pytest.fixture(scope="module")
def moments(tmp_path_factory, one_rank):
    """Of a run that saves and exports in each way there is."""
    folder = tmp_path_factory.mktemp("long")
    model, rows = save_model(folder / "model"), save_rows(folder / "rows.jsonl", 12)
    ways = dict(ckpt__save_hf=True, ckpt__save_steps=2, train__callbacks="tests.trainer.callbacks:SavesByItself")
    (found,) = one_rank.run(moments_of_writing, flags(model, rows, folder / "out", **ways))
    return found


def test_every_way_of_writing_is_announced_as_long(moments):
    assert {(name, what) for name, what, is_long in moments if not is_long} == set()


def test_the_run_wrote_in_every_way(moments):
    ways = {(name.partition(".")[0], what.partition(" after ")[0]) for name, what, _ in moments}
    assert ways == {
        ("save", "save"),
        ("export", "save"),  # along the way
        ("save", "saving global_step1"),
        ("export", "exporting the model"),
    }
