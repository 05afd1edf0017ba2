"""The files that a run leaves, by the contract."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.config import SFTConfig, write_resolved
from openrlhf.run import model_card
from openrlhf.run.report import keep_other_run_aside
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import CHATML, tiny_tokenizer
from tests.helpers.workbench import eval_lines, flags, save_model, save_rows, step_lines
from tests.runs.cases import run

STEP_KEYS = {
    "global_step", "epoch", "loss", "lr", "grad_norm", "num_tokens", "num_target_tokens", "consumed_samples",
    "tokens_per_second", "step_seconds", "token_accuracy", "host_memory_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory, two_ranks):
    """A run of 8 steps on two ranks that saves every 2 and evaluates every 3."""
    folder = tmp_path_factory.mktemp("files")
    save_rows(folder / "eval.jsonl", 7, seed=1)
    changes = dict(
        eval__dataset=folder / "eval.jsonl",
        eval__steps=3,
        ckpt__save_steps=2,
        ckpt__max_num=2,
        ckpt__save_hf=True,
        ds__zero_stage=3,
        logger__tensorboard_dir=folder / "tensorboard",
        logger__wandb__enable=True,
    )
    model = save_model(folder / "model")
    argv = flags(model, save_rows(folder / "rows.jsonl", 30), folder / "out", **changes)
    two_ranks.run(run, argv, {"WANDB_MODE": "offline"})
    return folder


def test_a_line_for_every_step_and_every_evaluation(bench):
    steps = step_lines(bench / "out")
    assert [line["global_step"] for line in steps] == list(range(1, 9))
    assert all(set(line) == STEP_KEYS for line in steps)
    assert [line["consumed_samples"] for line in steps] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert [line["global_step"] for line in eval_lines(bench / "out")] == [3, 6, 8]
    assert {line["eval_num_target_tokens"] for line in eval_lines(bench / "out")} == {
        eval_lines(bench / "out")[0]["eval_num_target_tokens"]
    }


def test_the_evaluation_falls(bench):
    losses = [line["eval_loss"] for line in eval_lines(bench / "out")]
    assert losses == sorted(losses, reverse=True)


def test_the_model_opens_and_answers(bench):
    model = AutoModelForCausalLM.from_pretrained(bench / "out")
    tokenizer = AutoTokenizer.from_pretrained(bench / "out")
    assert model.config.use_cache
    assert model.generation_config.eos_token_id is not None
    answer = model.generate(**tokenizer("coffee with", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > 2


def test_the_newest_checkpoints_and_exports_are_kept(bench):
    names = {path.name for path in (bench / "out/checkpoints").iterdir() if path.is_dir()}
    assert names == {"global_step6", "global_step8", "global_step6_hf", "global_step8_hf"}
    assert (bench / "out/checkpoints/latest").read_text().strip() == "global_step8"


def test_an_export_along_the_way_is_the_model_of_that_step(bench):
    last = AutoModelForCausalLM.from_pretrained(bench / "out/checkpoints/global_step8_hf")
    final = AutoModelForCausalLM.from_pretrained(bench / "out")
    for (name, one), (_, other) in zip(last.named_parameters(), final.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_configuration_and_picture_stand_beside_the_model(bench):
    assert (bench / "out/run_config.yaml").stat().st_size > 500
    assert (bench / "out/training_curves.png").read_bytes()[:4] == b"\x89PNG"


def test_tensorboard_and_wandb_wrote(bench):
    assert list((bench / "tensorboard").glob("events.out.tfevents.*"))
    assert list((bench / "out/wandb").glob("offline-run-*/run-*.wandb"))


def test_the_resolved_configuration_trains_the_same_again(two_ranks, bench):
    again = bench / "again"
    argv = ["@", str(bench / "out/run_config.yaml"), "--ckpt.output_dir", str(again), "--ckpt.path", str(again / "ck")]
    two_ranks.run(run, [*argv, "--logger.wandb.enable", "false"], {"WANDB_MODE": "offline"})
    assert [line["loss"] for line in step_lines(again)] == [line["loss"] for line in step_lines(bench / "out")]


def test_the_model_stops_where_tokenized_rows_end(tmp_path, two_ranks):
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.add_tokens(["<|call|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_model("qwen3", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    end_id = tokenizer.convert_tokens_to_ids("<|call|>")
    ids = [*tokenizer("sum of three").input_ids, end_id]
    row = {"input_ids": ids, "labels": [-100, *ids[1:]]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 8, encoding="utf-8")
    unnamed = dict(data__input_key=None, data__output_key=None)
    two_ranks.run(run, flags(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "out", **unnamed))
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert end_id in settings["eos_token_id"]


@pytest.mark.parametrize(
    ("written_by", "goes_on", "stays"),
    [("mine", True, True), ("other", True, False), (None, True, True), (None, False, False)],
)
def test_files_of_another_run_move_aside_and_those_of_a_folder_that_was_removed_do_not(
    tmp_path, written_by, goes_on, stays
):
    """A run brings its `metrics.jsonl` back without its settings."""
    files = {"metrics.jsonl": "{}", "README.md": f"# A card\n{model_card._MARK}"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    if written_by:
        write_resolved(SFTConfig(), tmp_path / "run_config.yaml", written_by)
    keep_other_run_aside(tmp_path, "mine", goes_on)
    for name, text in files.items():
        assert (tmp_path / (name if stays else f"{name}.previous")).read_text() == text


def test_a_card_of_the_users_own_is_moved_by_no_run(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    keep_other_run_aside(tmp_path, "mine", goes_on=False)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
