"""Callbacks of the user's own, in whole runs: order of events, open metrics, requests, and one that raises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from openrlhf.checkpoint.manifest import saved_identity
from openrlhf.exit_codes import RankLost
from openrlhf.trainer.callbacks.callback import Callback, failures_told
from tests.helpers.ranks import RankError
from tests.helpers.workbench import eval_lines, flags, read_metrics, save_model, save_rows, step_lines
from tests.runs.cases import run, run_as_command, run_until_asked_to_leave, said_by_run

MINE = "tests.trainer.callbacks"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("callbacks")
    save_rows(folder / "rows.jsonl", 12)
    save_rows(folder / "held_out.jsonl", 5, seed=1)
    save_model(folder / "model")
    return folder


def argv(bench: Path, out: str, **changes) -> list[str]:
    """Three steps an epoch, two epochs."""
    settings = dict(train__max_epochs=2, eval__dataset=bench / "held_out.jsonl", eval__steps=2) | changes
    return flags(bench / "model", bench / "rows.jsonl", bench / out, **settings)


def test_events_come_in_order_and_numbers_reach_the_records(one_rank, bench):
    words = argv(bench, "notes", train__callbacks=f"{MINE}:Notes", ckpt__save_steps=4)
    (said,) = one_rank.run(said_by_run, words)
    assert (
        "run begin | step 1 | step 2 | evaluate 2 | step 3 | step 4 | evaluate 4 | save global_step4 | step 5 | step 6 "
        "| evaluate 6 | save global_step6 | run end | exit NoneType" in said
    )
    lines = step_lines(bench / "notes")
    assert [line["twice_the_loss"] for line in lines] == [2 * line["loss"] for line in lines]
    assert [line["eval_mine"] for line in eval_lines(bench / "notes")] == [7.0] * 3


def test_a_save_comes_after_every_epoch_and_where_the_run_ends_in_one(one_rank, bench):
    one_rank.run(run, argv(bench, "epochs", train__callbacks=f"{MINE}:Notes", ckpt__every_epoch=True))
    one_rank.run(run, argv(bench, "within", ckpt__every_epoch=True, train__max_steps=2))
    for out, names in (("epochs", ["global_step3", "global_step6"]), ("within", ["global_step2"])):
        assert sorted(path.name for path in (bench / out / "checkpoints").glob("global_step*")) == names


def test_the_best_model_is_exported_where_it_is_wished(one_rank, bench):
    ways = dict(ckpt__save_steps=1, eval__steps=1, adam__lr=0.3, ckpt__save_hf=True, ckpt__max_num=9)
    (said,) = one_rank.run(said_by_run, argv(bench, "best", ckpt__export_best=True, **ways))
    losses = {line["global_step"]: line["eval_loss"] for line in eval_lines(bench / "best")}
    best = min(losses, key=losses.__getitem__)
    assert best < 6
    assert f"the model is the best one, that after step {best}" in said
    ours, theirs = (bench / "best" / "model.safetensors", bench / f"best/checkpoints/global_step{best}_hf")
    assert ours.read_bytes() == (theirs / "model.safetensors").read_bytes()
    card, page = ((bench / "best" / name).read_text() for name in ("README.md", "report.html"))
    assert f"| optimizer steps | {best}, the best of 6 |" in card
    assert f"| evaluated after step | {best} |\n| eval_loss | {losses[best]:.6g} |" in card
    assert f"that after step {best}</td>" in page
    assert saved_identity(bench / "best")["optimizer_step"] == best
    again = ways | dict(ckpt__load_enable=True)
    (said,) = one_rank.run(said_by_run, argv(bench, "best", ckpt__export_best=True, **again))
    assert "Nothing is done." in said
    shutil.rmtree(bench / f"best/checkpoints/global_step{best}")
    (said,) = one_rank.run(said_by_run, argv(bench, "best", ckpt__export_best=True, **again))
    assert "Nothing is done." in said, "the best checkpoint may go once its model is exported"
    (said,) = one_rank.run(said_by_run, argv(bench, "best", **again))
    assert "its model is not exported yet: nothing is trained." in said, "the folder holds the best, not the last"
    assert saved_identity(bench / "best")["optimizer_step"] == 6


def test_the_examples_callback_smooths_the_loss(one_rank, bench):
    one_rank.run(run, argv(bench, "smoothed", train__callbacks="examples.own_callback:SmoothedLoss"))
    lines = step_lines(bench / "smoothed")
    weights = [0.9 ** (len(lines) - 1 - place) for place in range(len(lines))]
    mean = sum(w * line["loss"] for w, line in zip(weights, lines, strict=True)) / sum(weights)
    assert lines[-1]["smoothed_loss"] == pytest.approx(mean)


def test_numbers_of_the_end_have_a_line_of_their_own(one_rank, bench):
    one_rank.run(run, argv(bench, "end", train__callbacks=f"{MINE}:LogsAtTheEnd"))
    assert read_metrics(bench / "end")[-1] == {"global_step": 6, "last_word": 7.0}


def test_a_signal_before_the_first_step_is_heeded_after_it(one_rank, bench):
    words = argv(bench, "left", train__callbacks=f"{MINE}:AskedToLeaveAtTheBegin")
    assert one_rank.run(run_until_asked_to_leave, words, -1, 0) == [75]
    assert len(step_lines(bench / "left")) == 1
    assert (bench / "left/checkpoints/global_step1/manifest.json").is_file()


def test_a_requested_save_is_made_at_that_step(one_rank, bench):
    one_rank.run(run, argv(bench, "saved", train__callbacks=f"{MINE}:SaveAtStepTwo"))
    assert (bench / "saved/checkpoints/global_step2/manifest.json").is_file()


def test_one_ranks_wish_to_stop_ends_the_run_on_all_with_its_model(two_ranks, bench):
    said, _ = two_ranks.run(said_by_run, argv(bench, "stopped", train__callbacks=f"{MINE}:StopAtStepThree"))
    assert "stopped after step 3: three steps are enough." in said
    assert len(step_lines(bench / "stopped")) == 3
    assert eval_lines(bench / "stopped")[-1]["global_step"] == 3, "its end is evaluated as any other"
    assert (bench / "stopped/model.safetensors").is_file()


def test_a_callback_that_raises_on_one_rank_is_named_and_ends_the_run_in_order(two_ranks, bench):
    words = argv(bench, "raised", train__callbacks=f"{MINE}:RaisesAtStepThree", ckpt__save_steps=2)
    codes, errors = zip(*two_ranks.run(run_as_command, words), strict=True)
    assert codes == (3, 3)
    told = "".join(errors)  # by the first rank that comes to it
    assert "rank 1: the callback RaisesAtStepThree raised in on_step_end: KeyError: 'no such thing'" in told
    assert "tests/trainer/callbacks.py:" in told
    assert (bench / "raised/checkpoints/global_step2/manifest.json").is_file()
    assert not (bench / "raised/config.json").exists(), "a run that failed exports no model"


def test_a_run_that_was_stopped_early_is_only_exported_when_it_starts_again(one_rank, bench):
    stops = dict(train__callbacks=f"{MINE}:StopAtStepThree,{MINE}:RaisesAtTheEnd", ckpt__save_steps=1)
    ((code, errors),) = one_rank.run(run_as_command, argv(bench, "again", **stops))
    assert (code, "RaisesAtTheEnd raised in on_run_end" in errors) == (3, True)
    assert not (bench / "again/config.json").exists()
    (said,) = one_rank.run(said_by_run, argv(bench, "again", ckpt__save_steps=1, ckpt__load_enable=True))
    assert "this run has finished, and its model is not exported yet: nothing is trained." in said
    assert (bench / "again/config.json").exists()
    assert len(step_lines(bench / "again")) == 3
    (said,) = one_rank.run(said_by_run, argv(bench, "again", ckpt__save_steps=1, ckpt__load_enable=True))
    assert "Nothing is done." in said


def test_a_signal_in_the_step_that_stops_the_run_leaves_it_stopped(one_rank, bench):
    """What was due after that step is made first of all, as in a run that is not asked."""
    ways = dict(train__callbacks=f"{MINE}:StopAtStepThree", eval__steps=3)
    assert one_rank.run(run_until_asked_to_leave, argv(bench, "left_at_its_end", **ways), 3, 0) == [75]
    (said,) = one_rank.run(said_by_run, argv(bench, "left_at_its_end", ckpt__load_enable=True, eval__steps=3))
    assert "stopped after step 3" in said
    assert [line["global_step"] for line in eval_lines(bench / "left_at_its_end")] == [3]
    assert len(step_lines(bench / "left_at_its_end")) == 3
    (said,) = one_rank.run(said_by_run, argv(bench, "left_at_its_end", ckpt__load_enable=True, eval__steps=3))
    assert "Nothing is done." in said
    more = dict(ckpt__load_enable=True, eval__steps=3, train__max_epochs=4)
    one_rank.run(run, argv(bench, "left_at_its_end", **more))
    assert len(step_lines(bench / "left_at_its_end")) == 12, "what stopped it then does not stop it again"


def test_a_save_that_a_callback_wished_in_the_step_of_a_signal_knows_its_loss(one_rank, bench):
    """So the best checkpoint is the same as without the signal, where callbacks alone ask for saves."""
    ways = dict(train__callbacks=f"{MINE}:SaveAtEpochs", eval__steps=3)
    one_rank.run(run, argv(bench, "wished", **ways))
    assert one_rank.run(run_until_asked_to_leave, argv(bench, "wished_and_left", **ways), 3, 0) == [75]
    assert not (bench / "wished_and_left/checkpoints/best.json").exists()
    assert one_rank.run(run_until_asked_to_leave, argv(bench, "wished_and_left", ckpt__load_enable=True, **ways), 4, 0)
    best = json.loads((bench / "wished_and_left/checkpoints/best.json").read_text())
    assert best["name"] == "global_step3"
    one_rank.run(run, argv(bench, "wished_and_left", ckpt__load_enable=True, **ways))
    ends = [(bench / out / "checkpoints/best.json").read_text() for out in ("wished", "wished_and_left")]
    assert ends[0] == ends[1]


def test_an_evaluation_that_was_due_when_the_run_left_is_made_when_it_goes_on(one_rank, bench):
    """To SIGKILL there may be less time than an evaluation takes."""
    ways = dict(ckpt__save_steps=2, train__callbacks=f"{MINE}:EvaluateAtStepFive")
    one_rank.run(run, argv(bench, "stayed", **ways))
    for step in (4, 5):
        words = argv(bench, "left_early", ckpt__load_enable=True, **ways)
        assert one_rank.run(run_until_asked_to_leave, words, step, 0) == [75]
        assert [line["global_step"] for line in eval_lines(bench / "left_early")] == [2, 4][: step - 3]
    one_rank.run(run, argv(bench, "left_early", ckpt__load_enable=True, **ways))
    assert [line["global_step"] for line in eval_lines(bench / "stayed")] == [2, 4, 5, 6]
    assert eval_lines(bench / "left_early") == eval_lines(bench / "stayed")
    best = [(bench / out / "checkpoints/best.json").read_text() for out in ("left_early", "stayed")]
    assert best[0] == best[1]


def test_a_signal_in_an_evaluation_is_heeded_after_it(one_rank, bench):
    """The next step may take minutes; nor is the evaluation made again."""
    words = argv(bench, "asked_in_it", train__callbacks=f"{MINE}:AskedToLeaveInAnEvaluation")
    assert one_rank.run(run_until_asked_to_leave, words, -1, 0) == [75]
    assert [len(lines) for lines in (step_lines(bench / "asked_in_it"), eval_lines(bench / "asked_in_it"))] == [2, 1]
    progress = json.loads((bench / "asked_in_it/checkpoints/global_step2/progress.json").read_text())
    assert not progress["left_early"]


def test_an_evaluation_on_other_rows_finds_its_best_anew(one_rank, bench):
    """Of those before the loss may never be reached again."""
    ways = dict(ckpt__save_steps=2, train__early_stop_patience=3)
    assert one_rank.run(run_until_asked_to_leave, argv(bench, "other_rows", **ways), 3, 0) == [75]
    best = bench / "other_rows/checkpoints/best.json"
    best.write_text('{"name": "global_step2", "eval_loss": -1.0}')
    save_rows(bench / "others.jsonl", 5, seed=2)
    ways |= dict(ckpt__load_enable=True, eval__dataset=bench / "others.jsonl")
    (said,) = one_rank.run(said_by_run, argv(bench, "other_rows", **ways))
    assert "the evaluation has other rows from here on" in said
    assert best.with_name("best.json.previous").is_file()
    assert json.loads(best.read_text())["eval_loss"] == min(
        line["eval_loss"] for line in eval_lines(bench / "other_rows") if line["global_step"] > 2
    )


def test_without_a_checkpoint_the_weights_of_a_run_that_stops_are_kept(one_rank, bench):
    """Nothing goes on from models that it has exported along the way."""
    kept = dict(ckpt__disable_ds=True, ckpt__save_hf=True, ckpt__save_steps=2)
    words = argv(bench, "exports", train__callbacks=f"{MINE}:RaisesAtStepThree", **kept)
    ((code, errors),) = one_rank.run(run_as_command, words)
    assert code == 3
    assert (bench / "exports/checkpoints/global_step2_hf").is_dir()
    assert f"The weights after step 3 are in {bench / 'exports' / 'weights_of_step3_1'}" in errors
    assert (bench / "exports/weights_of_step3_1/model.safetensors").is_file()


def test_an_export_that_fails_by_a_fault_of_ours_loses_no_training(one_rank, bench):
    with pytest.raises(RankError, match="ZeroDivisionError: a fault of ours"):
        one_rank.run(run, argv(bench, "spoilt", train__callbacks=f"{MINE}:SpoilsTheExport", ckpt__disable_ds=True))
    again = argv(bench, "spoilt", ckpt__load_enable=True, ckpt__export_shard_size="1.5GB")
    (said,) = one_rank.run(said_by_run, again)
    assert "nothing is trained" in said
    assert (bench / "spoilt/model.safetensors").is_file()


def test_a_run_that_was_stopped_early_goes_on_for_more_epochs(one_rank, bench):
    stops = dict(train__callbacks=f"{MINE}:StopAtStepThree", ckpt__save_steps=2, train__max_epochs=2)
    one_rank.run(run, argv(bench, "more", **stops))
    one_rank.run(run, argv(bench, "more", ckpt__save_steps=2, ckpt__load_enable=True, train__max_epochs=3))
    assert [line["global_step"] for line in step_lines(bench / "more")] == list(range(1, 10))


def test_a_callback_that_raises_on_exit_is_told_and_the_model_is_exported(one_rank, bench):
    ((code, errors),) = one_rank.run(run_as_command, argv(bench, "exit", train__callbacks=f"{MINE}:RaisesOnExit"))
    assert code == 0
    assert "warning: rank 0: the callback RaisesOnExit raised in on_exit: OSError: no room for my notes" in errors
    assert (bench / "exit/model.safetensors").is_file()


def test_the_record_is_not_the_callbacks_to_change(one_rank, bench):
    one_rank.run(run, argv(bench, "changed", train__callbacks=f"{MINE}:ChangesTheRecord"))
    assert all(line["loss"] > 0 for line in step_lines(bench / "changed"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LogsALoss", "the record has loss already: log under another name"),
        ("LogsWords", "could not convert string to float: 'good'"),
    ],
)
def test_numbers_alone_are_logged_and_none_takes_anothers_place(one_rank, bench, name, message):
    ((code, errors),) = one_rank.run(run_as_command, argv(bench, name, train__callbacks=f"{MINE}:{name}"))
    assert code == 3
    assert f"the callback {name} raised in on_step_end: ValueError: {message}" in errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            f"{MINE}:Missing",
            "AttributeError: module 'tests.trainer.callbacks' has no attribute 'Missing'",
        ),
        (f"{MINE}:NeedsAnArgument", "cannot be made: TypeError: NeedsAnArgument.__init__() missing 1 required"),
        (f"{MINE}:NoCallback", "is no Callback: make it a subclass of openrlhf's Callback"),
    ],
)
def test_a_callback_that_is_none_is_refused_before_data_are_prepared(one_rank, bench, name, message):
    ((code, errors),) = one_rank.run(run_as_command, argv(bench, "refused", train__callbacks=name))
    assert code == 2
    assert message in errors
    assert not (bench / "refused").exists()


def test_max_steps_ends_the_run_and_its_schedule(one_rank, bench):
    one_rank.run(run, argv(bench, "short", train__max_steps=4, lr_scheduler="linear", lr_warmup_ratio=0.0))
    rates = [line["lr"] for line in step_lines(bench / "short")]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4]), "the rate falls to zero over four steps"


def test_early_stop_after_evaluations_without_a_new_best(one_rank, bench):
    changes = dict(train__early_stop_patience=2, eval__steps=1, adam__lr=10.0, lr_scheduler="constant")
    (said,) = one_rank.run(said_by_run, argv(bench, "early", **changes))
    losses = [line["eval_loss"] for line in eval_lines(bench / "early")]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 6, losses
    assert "2 evaluations without a new best (--train.early_stop_patience 2)" in said
    assert one_rank.run(run_until_asked_to_leave, argv(bench, "early_left", **changes), len(losses), 0) == [75]
    one_rank.run(run, argv(bench, "early_left", ckpt__load_enable=True, **changes))
    assert len(step_lines(bench / "early_left")) == len(losses), "its last evaluation stops it before the next step"


def test_entropy_is_logged_on_request_and_accuracy_always(one_rank, bench):
    one_rank.run(run, argv(bench, "entropy", logger__entropy=True))
    one_rank.run(run, argv(bench, "plain"))
    assert all(0 < line["entropy"] < 10 for line in step_lines(bench / "entropy"))
    assert all(0 <= line["token_accuracy"] <= 1 for line in step_lines(bench / "plain"))
    assert all("entropy" not in line for line in step_lines(bench / "plain"))
    assert [line["loss"] for line in step_lines(bench / "entropy")] == [
        line["loss"] for line in step_lines(bench / "plain")
    ]


def test_a_callback_in_whose_evaluation_ranks_part_keeps_them_from_waiting_for_each_other():
    failures: list[str] = []
    with pytest.raises(RankLost, match="in a collective"), failures_told(Callback(), "on_step_end", failures):
        raise RankLost("memory ran out while the other ranks were in a collective")
    assert not failures
