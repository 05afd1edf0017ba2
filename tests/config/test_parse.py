"""Words of a command line → configuration, or all problems in one error."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from openrlhf.config import GenerateConfig, SFTConfig, from_namespace, parse_config
from openrlhf.config.schema import settings, values_of
from openrlhf.errors import UserError

CONTRACT_NAMES = {
    "model": "model_name_or_path gradient_checkpointing_enable aux_loss_coef pretrain_mode_enable",
    "data": (
        "dataset dataset_probs dataset_split max_samples max_len input_key output_key "
        "input_template apply_chat_template tokenizer_chat_template multiturn"
    ),
    "eval": "dataset split steps",
    "train": (
        "batch_size micro_batch_size max_epochs max_steps seed full_determinism_enable loss early_stop_patience "
        "callbacks"
    ),
    "ds": (
        "zero_stage param_dtype attn_implementation packing_samples ring_attn_size "
        "tensor_parallel_size adam_offload zpg overlap_comm grad_accum_dtype use_liger_kernel "
        "load_in_4bit use_universal_ckpt deepcompile"
    ),
    "ds.lora": "rank alpha dropout target_modules",
    "": "optim lr_scheduler lr_warmup_ratio min_lr_ratio max_norm",
    "adam": "lr betas eps weight_decay",
    "muon": "lr momentum",
    "ckpt": "output_dir path save_steps save_hf disable_ds max_num max_mem load_enable",
    "logger": "logging_steps tensorboard_dir entropy",
    "logger.wandb": "enable",
}


def problems_of(flags: list[str]) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_config(SFTConfig, flags)
    return caught.value.problems


def test_names_of_the_contract_are_settings():
    names = [f"{group}.{leaf}".lstrip(".") for group, leaves in CONTRACT_NAMES.items() for leaf in leaves.split()]
    assert [name for name in names if name not in settings(SFTConfig)] == []


def test_without_other_flags_the_defaults_hold(good_flags):
    config = parse_config(SFTConfig, [*good_flags, "--train.micro_batch_size", "8"])
    assert config.train == SFTConfig().train
    assert config.model.model_name_or_path == "./model"


LEFT_TO_THE_RUN = {name for name, setting in settings(SFTConfig).items() if setting.takes_auto}


def autos(good_flags, *words):
    values = values_of(parse_config(SFTConfig, [*good_flags, *words]))
    return {name for name in LEFT_TO_THE_RUN if values[name] == "auto"}


def test_a_layout_of_which_nothing_is_said_is_left_to_the_run(good_flags):
    assert autos(good_flags) == LEFT_TO_THE_RUN
    assert len(LEFT_TO_THE_RUN) == 6


def test_what_is_said_of_a_layout_is_not_left_to_the_run(good_flags):
    words = "--ds.packing_samples --ds.zero_stage 3 --train.max_tokens_per_micro_batch none --gradient_checkpointing"
    assert autos(good_flags, *words.split()) == {"train.micro_batch_size", "ds.ring_head_stride"}


@pytest.mark.parametrize("name", ["--train.micro_batch_size", "--micro_train_batch_size"])
def test_beside_a_number_of_samples_only_what_is_said_to_be_is_auto(good_flags, name):
    assert autos(good_flags, name, "4") == set()
    assert autos(good_flags, name, "4", "--ds.packing_samples", "auto") == {"ds.packing_samples"}


def test_a_switch_may_be_true_false_or_auto(good_flags):
    given = {"": True, "true": True, "false": False, "auto": "auto"}
    for word, value in given.items():
        words = [*good_flags, "--ds.packing_samples", *word.split()]
        assert parse_config(SFTConfig, words).ds.packing_samples == value


def test_auto_is_told_of_where_a_value_is_none(good_flags):
    (found,) = problems_of([*good_flags, "--ds.zero_stage", "automatic"])
    assert found == "--ds.zero_stage is 'automatic'; it must be one of 0, 1, 2, 3. Or give auto."


def test_what_is_never_left_to_the_run_takes_no_auto(good_flags):
    (found,) = problems_of([*good_flags, "--train.batch_size", "auto"])
    assert found == "--train.batch_size is 'auto'; it must be a whole number above 0."


def test_a_scripts_arguments_are_never_left_to_the_run():
    assert from_namespace(SFTConfig, argparse.Namespace()) == SFTConfig()
    with pytest.raises(UserError, match="args.zero_stage is 'auto'"):
        from_namespace(SFTConfig, argparse.Namespace(zero_stage="auto"))


@pytest.mark.parametrize(
    ("words", "group", "name", "value"),
    [
        (["--train.batch_size", "4"], "train", "batch_size", 4),
        (["--train.batch_size=4"], "train", "batch_size", 4),
        (["--train.batch-size", "4"], "train", "batch_size", 4),
        (["--train.batch_size", "4", "--train.batch_size", "6"], "train", "batch_size", 6),
        (["--data.max_samples", "1e5"], "data", "max_samples", 100000),
        (["--data.max_samples", "none"], "data", "max_samples", None),
        (["--ckpt.save_steps", "-1"], "ckpt", "save_steps", -1),
        (["--ds.packing_samples"], "ds", "packing_samples", True),
        (["--ds.packing_samples", "true"], "ds", "packing_samples", True),
        (["--ds.packing_samples", "--ds.packing_samples", "false"], "ds", "packing_samples", False),
        (["--ckpt.background_save=false"], "ckpt", "background_save", False),
        (["--ds.zero_stage", "3"], "ds", "zero_stage", 3),
        (["--adam.betas", "0.8", "0.9"], "adam", "betas", (0.8, 0.9)),
        (["--adam.lr", "2e-5"], "adam", "lr", 2e-5),
        (["--data.input_template", "Q: {}\nA: --"], "data", "input_template", "Q: {}\nA: --"),
        (["--data.input_template=--{}--"], "data", "input_template", "--{}--"),
        (["--local_rank=0"], "train", "batch_size", 128),
        (["--local-rank", "0"], "train", "batch_size", 128),
    ],
)
def test_a_value_is_read(good_flags, words, group, name, value):
    config = parse_config(SFTConfig, good_flags + words)
    assert getattr(getattr(config, group), name) == value


def test_a_tilde_is_the_home_folder(good_flags, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    config = parse_config(SFTConfig, [*good_flags, "--ckpt.output_dir=~/out", "--data.input_template=~/{}"])
    assert (config.ckpt.output_dir, config.data.input_template) == ("/home/ada/out", "~/{}")


def test_a_list_takes_one_value_or_several(good_flags):
    one = parse_config(SFTConfig, [*good_flags, "--ds.lora.target_modules", "q_proj"])
    two = parse_config(SFTConfig, [*good_flags, "--ds.lora.target_modules", "q_proj", "v_proj"])
    assert one.ds.lora.target_modules == ("q_proj",)
    assert two.ds.lora.target_modules == ("q_proj", "v_proj")


def test_a_top_level_setting_is_read(good_flags):
    assert parse_config(SFTConfig, [*good_flags, "--optim", "muon", "--max_norm", "0.5"]).max_norm == 0.5


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--train.batch_sise", "4"], "--train.batch_sise is unknown. Did you mean --train.batch_size?"),
        (["--trian.batch_size", "4"], "--trian.batch_size is unknown. Did you mean --train.batch_size?"),
        (["--train.lr", "1e-3"], "--train.lr is unknown. Did you mean --adam.lr?"),
        (["--eval.step", "4"], "--eval.step is unknown. Did you mean --eval.steps?"),
        (["--micro_train_batch_sz", "4"], "Did you mean --micro_train_batch_size?"),
        (["--qqqq"], "--qqqq is unknown. See --help for all."),
        (["--train.batch_size", "four"], "--train.batch_size is 'four'; it must be a whole number above 0."),
        (["--train.batch_size", "0"], "it must be a whole number above 0."),
        (["--train.batch_size", "1.5"], "it must be a whole number above 0."),
        (["--train.batch_size"], "--train.batch_size needs a value"),
        (["--train.batch_size", "4", "5"], "takes one value, but 2 are given"),
        (["--ckpt.save_steps", "0"], "or -1 for never"),
        (["--ckpt.save_steps", "-2"], "or -1 for never"),
        (["--adam.lr", "nan"], "--adam.lr is 'nan'; it must be a number above 0."),
        (["--adam.lr", "0"], "it must be a number above 0."),
        (["--adam.betas", "0.9"], "it must be 2 values"),
        (["--ds.packing_samples", "maybe"], "it must be true or false."),
        (["--ds.zero_stage", "4"], "it must be one of 0, 1, 2, 3."),
        (["--ds.param_dtype", "bfloat16"], "one of bf16, fp16, fp32. Did you mean bf16?"),
        (["--lr_scheduler", "cosine_with_min"], "Did you mean cosine_with_min_lr?"),
        (["--ckpt.export_shard_size", "5"], "a size with its unit"),
        (["--ckpt.export_shard_size", "5gb"], "it must be a size with its unit, such as 500MB, 1.5GB or 80GiB"),
        (["--ckpt.export_shard_size", "0GB"], "from 1KB to 1000000TB."),
        (["--ckpt.export_shard_size", "9999999TB"], "from 1KB to 1000000TB."),
        (["--train", "3"], "--train is a group of settings, such as train.batch_size."),
        (["@", "missing.toml"], "The configuration file missing.toml cannot be read"),
        (["--config"], "--config needs one file"),
    ],
)
def test_a_wrong_flag_is_one_problem_with_its_remedy(good_flags, words, problem):
    (found,) = problems_of(good_flags + words)
    assert problem in found


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [("5GB", 5 * 10**9), ("1.5GB", 1_500_000_000), ("79.6 GiB", 85_469_849_190), ("1TB", 10**12), ("1KiB", 1024)],
)
def test_a_size_is_read_as_it_is_written(good_flags, size, num_bytes):
    assert parse_config(SFTConfig, [*good_flags, "--ckpt.export_shard_size", size]).ckpt.export_shard_bytes == num_bytes


def test_a_word_without_a_flag_is_reported():
    assert "'stray' belongs to no flag" in problems_of(["stray"])[0]


def test_all_problems_are_reported_at_once(good_flags):
    flags = [*good_flags, "--ds.zero_stag", "3", "--train.batch_size", "x", "--ds.ring_attn_size", "2"]
    flags += ["--ds.packing_samples", "false"]
    found = "\n".join(problems_of([*flags, "--eval.steps", "5", "--eval.dataset", "./gone.jsonl"]))
    for word in ("--ds.zero_stag ", "'x'", "--ds.packing_samples", "does not divide", "./gone.jsonl"):
        assert word in found


def test_a_problem_that_only_follows_from_another_is_left_out(good_flags):
    flags = ["--modle.model_name_or_path", "./model", *good_flags[2:]]
    assert problems_of(flags) == ["--modle.model_name_or_path is unknown. Did you mean --model.model_name_or_path?"]


def test_the_number_of_ranks_comes_from_the_environment(good_flags, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    (found,) = problems_of([*good_flags, "--train.batch_size", "3"])
    assert "below the 4 ranks" in found


def test_a_number_of_ranks_that_is_none_is_told(good_flags, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "abc")
    assert "WORLD_SIZE is 'abc' in the environment" in problems_of(good_flags)[0]


def test_more_answers_to_a_prompt_than_anyone_waits_for_are_refused():
    with pytest.raises(UserError, match="--generate.n is '4e18'; it must be a whole number from 1 to 1000000"):
        parse_config(GenerateConfig, ["--generate.n", "4e18"])


def test_help_shows_every_flag_once_and_ends_with_zero(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        parse_config(SFTConfig, ["--train.batch_size", "x", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert [name for name in settings(SFTConfig) if shown.count(f"--{name} ") != 1] == []


def test_a_key_is_taken_with_a_warning_and_shown_nowhere(good_flags, capsys):
    config = parse_config(SFTConfig, [*good_flags, "--logger.wandb.key", "s3cret"])
    assert config.logger.wandb.key == "s3cret"
    assert "WANDB_API_KEY" in capsys.readouterr().err
    assert "s3cret" not in repr(config)


def test_a_setting_that_changes_nothing_is_told_in_one_sentence(good_flags, capsys):
    parse_config(SFTConfig, [*good_flags, "--use_ds_universal_ckpt"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "--ds.use_universal_ckpt changes nothing" in line
    parse_config(SFTConfig, [*good_flags, "--data.input_template", "Q: {}", "--data.apply_chat_template"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "--data.input_template changes nothing beside --data.apply_chat_template" in line


def test_a_warm_up_beyond_the_run_is_told(good_flags, capsys):
    parse_config(SFTConfig, [*good_flags, "--lr_warmup_ratio", "25"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "above 1: the run ends before the learning rate has risen, at 4.00% of its highest" in line


def test_a_key_stands_in_no_error(good_flags):
    flags = [*good_flags, "--logger.wandb.key", "s3cret", "more", "--wandb.kye", "s3cret"]
    assert "s3cret" not in "\n".join(problems_of(flags))


def test_the_room_loads_no_heavy_library():
    heavy = ("torch", "transformers", "datasets", "pyarrow")
    code = f"import sys, openrlhf.config; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
