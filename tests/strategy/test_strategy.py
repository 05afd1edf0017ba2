"""DeepspeedStrategy and SFTTrainer by the public contract, as scripts use them."""

from __future__ import annotations

import json

import pytest
import torch

from openrlhf.config import AdamConfig, DeepspeedConfig, SFTConfig, parse_config
from openrlhf.engine.engine_config import engine_config
from openrlhf.engine.optimizers import decay_groups
from openrlhf.engine.torch_operators import cpu_computes_fp16
from openrlhf.errors import UserError
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.strategy.training_cfg import TrainingCfg, read_cfg
from tests.helpers.tiny_models import tiny_model
from tests.helpers.workbench import save_model
from tests.strategy import cases

NEEDS_FP16 = pytest.mark.skipif(not cpu_computes_fp16(), reason="this processor does not compute in float16")


def test_fit_works_with_a_loader_of_ones_own(two_ranks, tmp_path):
    seen = two_ranks.run(cases.fit_with_a_loader_of_ones_own, str(tmp_path))
    assert seen == [{"steps": 6, "samples": 44}] * 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert lines[-1]["eval_loss"] > 0


@pytest.mark.parametrize("batch_size", [8, 1], ids=["batch size given", "batch size left out"])
def test_each_step_over_a_loader_of_ones_own_stands_once_after_a_resume(one_rank, tmp_path, batch_size):
    """The last step of an epoch is short, so that samples do not tell the steps."""
    (first,) = one_rank.run(cases.fit_from_the_newest, str(tmp_path), 1, batch_size)
    (resumed,) = one_rank.run(cases.fit_from_the_newest, str(tmp_path), 2, batch_size)
    assert f"no checkpoint in {tmp_path}/ck: the run starts from" in first
    assert "no checkpoint" not in resumed
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(loader_batch=2, trainer_batch=8), ""),
        (dict(loader_batch=2, trainer_batch=8, num_rows=7), ""),
        (dict(loader_batch=2, trainer_batch=16), "SFTTrainer(batch_size=16) contradicts the strategy"),
        (dict(loader_batch=4, trainer_batch=8), "a step has 16 samples over all ranks, and train_batch_size is 8"),
        (dict(loader_batch=4, trainer_batch=1), "note: a step has 16 samples over all ranks"),
        (dict(loader_batch=4, trainer_batch=1, num_rows=7), ""),
        (dict(loader_batch=4, trainer_batch=10, train_batch_size=10, micro_train_batch_size=4), "train_batch_size 10"),
        (dict(loader_batch=4, trainer_batch=4, train_batch_size=4, micro_train_batch_size=8), ""),
    ],
    ids=str,
)
def test_a_batch_size_that_a_loader_of_ones_own_contradicts_is_told(one_rank, tmp_path, sizes, message):
    (said,) = one_rank.run(cases.fit_with_batches, str(tmp_path), **sizes)
    assert said.startswith(message) if message else said == ""


def test_a_loop_of_ones_own_learns(two_ranks, tmp_path):
    losses = two_ranks.run(cases.loop_of_ones_own, str(tmp_path))[0]
    assert losses[-1] < 0.7 * losses[0]


def test_models_that_train_in_turn_accumulate_each_by_itself(one_rank, tmp_path):
    assert one_rank.run(cases.two_models_in_turn, str(tmp_path)) == [[2, 2]]


def test_save_ckpt_and_load_ckpt(two_ranks, tmp_path):
    loaded = two_ranks.run(cases.save_and_load_by_name, str(tmp_path))[0]
    assert loaded["same"]
    assert loaded["states"] == {"consumed_samples": 16, "note": "mine"}
    assert loaded["path"] == str(tmp_path / "ck/global_step2")
    assert loaded["older"] == 8, "a tag names the checkpoint"


def test_limits_of_a_later_save_count(two_ranks, tmp_path):
    first, second, third = two_ranks.run(cases.save_with_other_limits, str(tmp_path))[0]
    assert (first, second) == (["global_step1"], ["global_step1", "global_step2"])
    assert third == ["global_step3"]


def folders(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_a_new_run_of_a_script_sets_another_runs_checkpoints_aside(one_rank, tmp_path):
    one_rank.run(cases.fits_in_turn, str(tmp_path), num_fits=1)
    (heard,) = one_rank.run(cases.fits_in_turn, str(tmp_path), num_fits=1, train_batch_size=22)
    assert folders(tmp_path / "ck") == ["earlier_run_1", "global_step1"]
    assert folders(tmp_path / "ck/earlier_run_1") == ["global_step1", "global_step2", "global_step3"]
    assert heard.count("holds checkpoints of an earlier run: they are in") == 1


def test_fits_in_turn_keep_their_own_checkpoints(one_rank, tmp_path):
    (heard,) = one_rank.run(cases.fits_in_turn, str(tmp_path))
    assert folders(tmp_path / "ck") == ["global_step1", "global_step2", "global_step3"]
    assert "an earlier run" not in heard


def test_the_fit_of_another_model_is_another_run(one_rank, tmp_path):
    (heard,) = one_rank.run(cases.fits_of_two_models, str(tmp_path))
    assert folders(tmp_path / "ck") == ["earlier_run_1", "global_step1", "global_step2", "global_step3"]
    assert folders(tmp_path / "ck/earlier_run_1") == ["global_step1", "global_step2", "global_step3"]
    assert heard.count("holds checkpoints of an earlier run: they are in") == 1


def test_a_fit_that_writes_no_checkpoint_leaves_those_of_others(one_rank, tmp_path):
    (heard,) = one_rank.run(cases.fits_of_two_models, str(tmp_path), disable_ds_ckpt=True)
    assert folders(tmp_path / "ck") == ["global_step1", "global_step2", "global_step3"]
    assert "an earlier run" not in heard


def test_a_hook_saves_checkpoints_of_its_run(one_rank, tmp_path):
    one_rank.run(cases.fit_with_a_hook_that_saves, str(tmp_path))
    assert folders(tmp_path / "ck") == ["global_step1", "global_step2", "global_step3"]


def test_an_own_loop_sets_checkpoints_aside_that_it_has_not_loaded(one_rank, tmp_path):
    (first,) = one_rank.run(cases.save_one, str(tmp_path), 300, loads=False)
    (resumed,) = one_rank.run(cases.save_one, str(tmp_path), 301, loads=True)
    assert folders(tmp_path / "ck") == ["global_step300", "global_step301"]
    assert "an earlier run" not in first + resumed
    (heard,) = one_rank.run(cases.save_one, str(tmp_path), 40, loads=False)
    assert folders(tmp_path / "ck") == ["earlier_run_1", "global_step40"]
    assert "holds checkpoints of an earlier run: they are in" in heard


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (dict(pretrain_mode=True), ""),
        (dict(pretrain_mode=True, max_norm=0.5), ""),
        (dict(pretrain_mode=True, max_norm=1.0), "SFTTrainer(max_norm=1) contradicts the strategy"),
        (dict(pretrain_mode=False), "SFTTrainer(pretrain_mode=False) contradicts its data set"),
    ],
    ids=str,
)
def test_a_trainer_that_contradicts_its_parts_is_refused(one_rank, tmp_path, choices, message):
    (said,) = one_rank.run(cases.sft_trainer_with, str(tmp_path), **choices)
    assert said.startswith(message) if message else said == ""


def test_pretrain_mode_makes_every_token_of_a_foreign_loader_a_target(two_ranks, tmp_path):
    (one, other) = two_ranks.run(cases.all_tokens_are_targets, str(tmp_path))
    assert one == other == sum(ids.numel() - 1 for ids, _, _ in cases.rows())


@pytest.mark.parametrize(("save_steps", "num_steps", "words"), [(3, 1, "refused: "), (-1, 3, "warning: ")])
def test_a_state_that_no_checkpoint_holds_is_told_at_the_first_update(one_rank, tmp_path, save_steps, num_steps, words):
    run = cases.train_with_an_optimizer_that_no_checkpoint_holds
    ((steps, rate, said),) = one_rank.run(run, str(tmp_path), save_steps)
    assert (steps, rate) == (num_steps, 1e-3), "no schedule was given: the rate stays"
    assert said.startswith(f"{words}no checkpoint can hold the optimizer's state: 'rms' of ")


def test_a_loop_of_ones_own_is_told_of_a_state_that_no_checkpoint_holds(one_rank, tmp_path):
    ((num_warnings, said),) = one_rank.run(cases.loop_with_an_optimizer_that_no_checkpoint_holds, str(tmp_path))
    assert num_warnings == 1
    assert said.startswith("no checkpoint can hold the optimizer's state")


def test_an_optimizer_is_no_cfg():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(UserError, match=r"given \(model, optimizer\). Give \(model, optimizer, scheduler\)"):
        read_cfg(optimizer, TrainingCfg(AdamConfig(), None, 1.0, {}))


def test_a_bare_model_is_prepared_for_evaluation(two_ranks, tmp_path):
    assert two_ranks.run(cases.evaluate_a_bare_model, str(tmp_path)) == [True, True]


def test_a_bare_model_of_the_hosts_memory_is_prepared_for_it(two_ranks, tmp_path):
    save_model(tmp_path / "model")
    assert two_ranks.run(cases.evaluate_from_the_hosts_memory, str(tmp_path)) == [[True, True]] * 2


def test_reductions(two_ranks):
    for rank, seen in enumerate(two_ranks.run(cases.reduce_and_gather)):
        assert seen == {"mean": 0.5, "sum": [1.0, 2.0], "max": 1.0, "gathered": [0, 0, 1, 1], "rank_0": rank == 0}


@pytest.mark.parametrize(
    "changes",
    [
        dict(dtype="bf16"),
        dict(dtype="bf16", zero_stage=0),
        pytest.param(dict(dtype="fp16"), marks=NEEDS_FP16),
        pytest.param(dict(dtype="fp16", zero_stage=3), marks=NEEDS_FP16),
        dict(dtype="bf16", adam_offload=True),
        dict(optim="muon"),
        dict(lora_rank=4, learning_rate=1e-2),
        dict(lora_rank=4, learning_rate=1e-2, zero_stage=3),
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()),
)
def test_it_learns(two_ranks, tmp_path, changes):
    losses = two_ranks.run(cases.losses_with, str(tmp_path), **changes)[0]
    assert losses[-1] < 0.93 * losses[0], losses


def test_a_configuration_of_the_command_line_is_plain_where_nothing_is_chosen(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "one", "completion": "two"}\n', encoding="utf-8")
    model = save_model(tmp_path / "model")
    config = parse_config(SFTConfig, ["--model.model_name_or_path", str(model), "--data.dataset", str(rows)])
    assert config.ds.zero_stage == "auto", "the command line leaves it to the run"
    strategy = DeepspeedStrategy.of(config)
    assert (strategy.ds, strategy.train) == (SFTConfig().ds, SFTConfig().train)


def test_decay_is_for_matrices_alone():
    model = tiny_model("gpt2")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, undecayed = ([names[id(p)] for p in group["params"]] for group in decay_groups(model, 0.1))
    assert [group["weight_decay"] for group in decay_groups(model, 0.1)] == [0.1, 0.0]
    assert all(name.endswith("weight") and ".ln_" not in name and "wte" not in name for name in decayed)
    assert all(name.endswith(("bias", "wte.weight", "wpe.weight")) or "ln_" in name for name in undecayed)
    assert len(decayed) + len(undecayed) == len(names)


@pytest.mark.parametrize(("stage", "dtype"), [(0, None), (1, "fp32"), (2, "fp32"), (3, "fp32")])
def test_gradients_add_up_in_float32_where_deepspeed_can(stage, dtype):
    config = engine_config(DeepspeedConfig(zero_stage=stage, param_dtype="bf16"), max_norm=1.0, pin_memory=False)
    assert config.get("data_types", {}).get("grad_accum_dtype") == dtype
    assert config["gradient_accumulation_steps"] == 1
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": True, "immediate_grad_update": True}


def test_importing_needs_no_deepspeed():
    import subprocess
    import sys

    code = (
        "import sys, openrlhf, openrlhf.datasets, openrlhf.models, openrlhf.utils; "
        "assert 'deepspeed' not in sys.modules, 'deepspeed was loaded'"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


def test_the_head_reads_the_contract():
    from openrlhf.models import SFTLoss

    log_probs, mask = torch.tensor([[-1.0, -2.0, -4.0]]), torch.tensor([[1, 0, 1]])
    assert SFTLoss()(log_probs, mask) == 2.5
