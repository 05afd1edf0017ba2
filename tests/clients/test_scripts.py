"""OpenRLHF's scripts of both generations run unmodified, and train as our own command line does, step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients import cases
from tests.helpers.slow import slow
from tests.runs.test_resume import assert_same_tensors
from tests.tracking.test_remote_sinks import logged, records

TEMPLATE = "User: {}\nAssistant: "


def steps(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def assert_same_run(theirs: Path, ours: Path, num_steps: int = 6) -> None:
    """Losses and learning rates, step by step."""
    one, other = steps(theirs), steps(ours)
    assert len(one) == len(other) == num_steps
    assert [step["lr"] for step in one] == pytest.approx([step["lr"] for step in other], rel=1e-9)
    assert [step["loss"] for step in one] == pytest.approx([step["loss"] for step in other], rel=2e-6)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A model, rows, and what our command line makes of them with one rank."""
    folder = tmp_path_factory.mktemp("clients")
    cases.make_bench(folder)
    return folder


def test_a_script_of_0_9_trains_as_our_command_line(one_rank, bench):
    (heard,) = one_rank.run(cases.script, "0.9", str(bench), "theirs_09")
    one_rank.run(cases.command_line, str(bench), "ours_09", "--data.input_template", TEMPLATE)
    assert_same_run(bench / "theirs_09", bench / "ours_09")
    assert "22 samples of 23 rows" in heard
    assert "longer than max_len" in heard
    assert "was made for 4 steps, and this run takes 6" in heard
    assert "OpenRLHF means another thing by these flags (see --compat):" in heard
    assert "--data.max_len: there longer rows are cut; here longer rows are left out" in heard


def test_a_script_of_0_11_trains_as_our_command_line(one_rank, bench):
    one_rank.run(cases.script, "0.11", str(bench), "theirs_11")
    one_rank.run(cases.command_line, str(bench), "ours_11")
    assert_same_run(bench / "theirs_11", bench / "ours_11")


@pytest.mark.parametrize("generation", ["0.9", "0.11"])
def test_a_ring_that_the_actor_was_not_told_of(two_ranks, bench, generation):
    words = {
        "0.9": "--ring_attn_size 2 --packing_samples --input_template {}",
        "0.11": "--ds.ring_attn_size 2 --ds.packing_samples --data.input_template {} --ds.ring_attn_head_stride 2",
    }
    heard, _ = two_ranks.run(cases.script, generation, str(bench), f"ring_{generation}", *words[generation].split())
    flags = "--ds.ring_attn_size 2 --ds.packing_samples --data.input_template {} --ds.ring_head_stride 2"
    two_ranks.run(cases.command_line, str(bench), f"our_ring_{generation}", *flags.split())
    assert_same_run(bench / f"ring_{generation}", bench / f"our_ring_{generation}")
    assert "the model was not told of its ring of 2 ranks" in heard


def test_a_resume_by_the_model_of_the_actor(one_rank, bench):
    words = ["--save_steps", "2", "--save_hf_ckpt", "--lr_scheduler", "constant", "--lr_warmup_ratio", "0"]
    one_rank.run(cases.script, "0.9", str(bench), "whole", *words)
    one_rank.run(cases.script, "0.9", str(bench), "halves", *words, "--max_epochs", "1")
    (heard,) = one_rank.run(cases.script, "0.9", str(bench), "halves", *words, "--load_checkpoint")
    assert "Loaded the checkpoint" in heard
    assert [step["global_step"] for step in steps(bench / "halves")] == list(range(1, 7))
    assert steps(bench / "halves")[-1]["consumed_samples"] == 44
    assert [step["loss"] for step in steps(bench / "halves")] == [step["loss"] for step in steps(bench / "whole")]
    assert_same_tensors(bench / "halves/model.safetensors", bench / "whole/model.safetensors")


def test_a_script_of_0_11_goes_on_on_another_number_of_ranks(one_rank, two_ranks, bench):
    words = ["--ckpt.save_steps", "3", "--lr_scheduler", "constant", "--lr_warmup_ratio", "0"]
    one_rank.run(cases.script, "0.11", str(bench), "whole_11", *words)
    two_ranks.run(cases.script, "0.11", str(bench), "halves_11", *words, "--train.max_epochs", "1")
    one_rank.run(cases.script, "0.11", str(bench), "halves_11", *words, "--ckpt.load_enable")
    assert_same_run(bench / "whole_11", bench / "halves_11")


def test_a_script_evaluates_along_the_way_and_by_itself(one_rank, bench):
    words = ["--eval_dataset", str(bench / "rows.jsonl"), "--eval_steps", "4"]
    (heard,) = one_rank.run(cases.script, "0.9", str(bench), "evaluated", *words)
    lines = [json.loads(line) for line in (bench / "evaluated" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["global_step"] for line in evaluations] == [4, 6]
    assert evaluations[1]["eval_loss"] < evaluations[0]["eval_loss"]
    assert f"evaluated again: {evaluations[1]['eval_loss']}" in heard


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            "--ds.lora.rank 4 --ds.lora.target_modules q_proj v_proj",
            "--ds.lora.rank 4 --ds.lora.target_modules q_proj v_proj",
        ),
        *slow([("--optim muon --muon.lr 0.01 --muon.momentum 0.9", "--optim muon --muon.lr 0.01 --muon.momentum 0.9")]),
    ],
    ids=["lora", "muon"],
)
def test_what_a_script_asks_for_happens(two_ranks, bench, theirs, ours):
    name = theirs.split()[0].strip("-") + theirs.split()[1]
    two_ranks.run(cases.script, "0.11", str(bench), f"theirs_{name}", *theirs.split())
    two_ranks.run(cases.command_line, str(bench), f"ours_{name}", *ours.split())
    assert_same_run(bench / f"theirs_{name}", bench / f"ours_{name}")


def test_experts_of_a_script(two_ranks, tmp_path):
    cases.make_bench(tmp_path, "mixtral")
    words = ["--model.aux_loss_coef", "0.01", "--ds.experts_implementation", "eager"]
    two_ranks.run(cases.script, "0.11", str(tmp_path), "theirs", *words)
    two_ranks.run(cases.command_line, str(tmp_path), "ours", *words)
    assert_same_run(tmp_path / "theirs", tmp_path / "ours")
    assert [step["aux_loss"] > 0 for step in steps(tmp_path / "theirs")] == [True] * 6


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ("0.9", "--use_wandb a_key --wandb_project coffee --wandb_run_name first --compat openrlhf-0.9"),
        (
            "0.11",
            "--logger.wandb.key a --logger.wandb.project coffee --logger.wandb.run_name first --compat openrlhf-0.11",
        ),
    ],
    ids=["0.9", "0.11"],
)
def test_a_script_logs_to_wandb_by_openrlhfs_names(one_rank, bench, generation, words):
    (heard,) = one_rank.run(cases.script, generation, str(bench), f"wandb_{generation}/out", *words.split())
    assert f"--compat openrlhf-{generation}: taken as there:" in heard
    assert "--data.max_len: there longer rows are cut" in heard
    charts = logged(bench / f"wandb_{generation}")
    of_steps = [row for row in charts if "train/gpt_loss" in row]
    lines = steps(bench / f"wandb_{generation}" / "out")
    assert [row["train/global_step"] for row in of_steps] == [1, 2, 3, 4, 5, 6]
    for row, line in zip(of_steps, lines, strict=True):
        assert row["train/gpt_loss"] == row["train/loss_mean"] == line["loss"]
        assert row["train/lr"] == line["lr"]
    (started,) = records(bench / f"wandb_{generation}", "run")
    assert (started.run.project, started.run.display_name) == ("coffee", "first")


def test_a_hook_that_a_subclass_overrides_is_called(one_rank, bench):
    one_rank.run(cases.script, "0.9", str(bench), "hooked", "--save_steps", "3", trainer="LoggingTrainer")
    assert [step["twice_the_loss"] for step in steps(bench / "hooked")] == [
        2 * step["loss"] for step in steps(bench / "hooked")
    ]
    assert (bench / "hooked" / "ck" / "global_step6").is_dir(), "saves are made all the same"


def test_a_cfg_is_read_whole(one_rank):
    cfg = {
        "optim": "adam",
        "adam": {"lr": 2e-3, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.1},
        "muon": None,
        "max_norm": 0.5,
        "lr_scheduler": "cosine",
        "lr_warmup_ratio": 0.1,
        "scheduler_steps": 40,
    }
    (found,) = one_rank.run(cases.prepare_with, cfg)
    assert found == {"optimizer": "FusedAdam", "lr": 2e-3, "decay": 0.1, "max_norm": (0.5, 0.5), "steps": 40}


@pytest.mark.parametrize(
    ("cfg", "problem"),
    [
        ({"lr": 1e-3, "scheduler_step": 4}, "cfg.scheduler_step is unknown here"),
        ({"adam": {"lr": 1e-3, "beta1": 0.9}}, "cfg.adam.beta1 is unknown here"),
        ({"adam": {"lr": "fast"}}, "cfg.adam.lr is 'fast'; it must be a number above 0"),
        ({"optim": "muon", "muon": {"ns_steps": 9}}, "DeepSpeed's Muon takes 5 steps"),
        ({"lr_scheduler": "cosine", "scheduler_steps": 0}, "it must be the optimizer steps of the run"),
        ({"lr": 1e-3, "lr_scheduler": "cosine"}, "cfg.scheduler_steps is missing"),
    ],
    ids=str,
)
def test_a_cfg_that_cannot_be_is_refused(one_rank, cfg, problem):
    (found,) = one_rank.run(cases.prepare_with, cfg)
    assert problem in found["problem"]


def test_a_strategy_takes_everything_by_its_place(two_ranks, tmp_path):
    cases.make_bench(tmp_path, num_rows=4)
    for rank, found in enumerate(two_ranks.run(cases.calls_by_position, str(tmp_path))):
        assert found["stage"] == (1, "fp32"), "the dict of settings is not read"
        assert found["rows of a batch"] == 3
        assert found["reduced"] == (1, 1)
        assert found["gathered"] == [[0, 7], [1, 7]]
        assert found["is rank 0"] is (rank == 0)
        assert found["kept"] == ["global_step2", "global_step3"]
        assert found["loaded"] == ("global_step3", 24, [3])
        assert "reads the whole of a checkpoint" in found["problem"]
        assert "Call load_model before prepare" in found["problem of load_model"]
        assert found["frozen"] == (1, 5)


def test_a_schedule_that_has_run_begins_anew_with_the_run(one_rank, tmp_path):
    ((first, second), heard) = one_rank.run(cases.rates_of_two_fits, str(tmp_path))[0]
    assert second == first < 1e-4, "the rate has risen again"
    assert heard.count("it begins there, too") == 1


def test_the_forward_pass_of_a_ring_and_of_a_pack(two_ranks):
    for found in two_ranks.run(cases.forward_like_theirs):
        assert found.pop("actions") is True
        assert max(found.values()) < 2e-5, found


def test_a_loop_like_theirs_over_our_loader(one_rank, two_ranks, tmp_path):
    (alone,) = one_rank.run(cases.loop_like_theirs, str(tmp_path))
    shared, same = two_ranks.run(cases.loop_like_theirs, str(tmp_path))
    assert shared == same == pytest.approx(alone, rel=1e-4)
    assert len(alone) == 12
    (rest,) = one_rank.run(cases.loop_like_theirs, str(tmp_path), 1, 16)
    assert len(rest) == 2, "the loader begins behind the samples that are consumed"
