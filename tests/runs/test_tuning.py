"""A run that tunes its layout, by the command line: its records, and going on from its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.workbench import flags, read_metrics, save_model, save_rows
from tests.runs.cases import run_until_asked_to_leave, said_by_run, tuned
from tests.runs.test_resume import assert_same_run

NUM_STEPS, DECIDED_IN = 24, 11


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    save_rows(folder / "rows.jsonl", 22)
    save_model(folder / "model")
    return folder


def argv(bench: Path, out: str, **changes) -> list[str]:
    settings = dict(train__max_epochs=4, ckpt__save_steps=5, ckpt__max_num=9) | changes
    return flags(bench / "model", bench / "rows.jsonl", bench / out, **settings)


def layouts_of(out: Path) -> list[dict]:
    return [line for line in read_metrics(out) if "layout" in line]


@pytest.fixture(scope="module")
def said_by_unbroken(one_rank, bench):
    return one_rank.run(tuned, said_by_run, argv(bench, "unbroken"))[0]


def test_the_layout_that_is_kept_is_told_recorded_and_reported(said_by_unbroken, bench):
    words = "layout from here on: 256 tokens a micro-batch, activations recomputed. Seen in the first steps: 128 tokens"
    assert said_by_unbroken.count(words) == 1
    (record,) = layouts_of(bench / "unbroken")
    assert record["global_step"] == DECIDED_IN
    assert record["layout"] == {"max_tokens": 256, "recomputes": True}
    assert [one["num_steps"] for one in record["tried"]] == [5, 5]
    report = (bench / "unbroken/report.html").read_text()
    assert f"layout kept in step {DECIDED_IN}" in report
    assert "256 tokens a micro-batch, activations recomputed" in report


def test_a_run_that_goes_on_takes_the_kept_layout_and_equals_the_unbroken_run(said_by_unbroken, one_rank, bench):
    stop_after = 13
    assert one_rank.run(tuned, run_until_asked_to_leave, argv(bench, "stopped"), stop_after, 0) == [75]
    one_rank.run(tuned, said_by_run, argv(bench, "stopped", ckpt__load_enable=True))
    assert_same_run(bench / "unbroken", bench / "stopped", NUM_STEPS)
    decided, taken = layouts_of(bench / "stopped")
    assert decided == layouts_of(bench / "unbroken")[0]
    assert taken == {"global_step": stop_after + 1, "layout": decided["layout"]}


@pytest.mark.parametrize("tunes", [True, False])
def test_a_run_that_says_nothing_of_its_layout_tries_those_that_it_may_choose(tunes, one_rank, bench):
    save_rows(bench / "many.jsonl", 44)
    out, settings = (
        bench / f"unsaid-{tunes}",
        dict(train__batch_size=44, train__max_epochs=24, train__tune_layout=tunes),
    )
    words = flags(bench / "model", bench / "many.jsonl", out, train__micro_batch_size=None, **settings)
    (said,) = one_rank.run(said_by_run, words)
    assert ("layout from here on" in said) == tunes
    tried = [[one["max_tokens"] for one in record["tried"] if one["num_steps"]] for record in layouts_of(out)]
    assert tried == ([[1_024, 512]] if tunes else [])
