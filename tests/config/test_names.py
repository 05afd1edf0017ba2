"""Old names of settings, and the way to `strategy.args` and back."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import pytest

from openrlhf.config import SFTConfig, as_namespace, from_namespace, parse_config
from openrlhf.config.roots import ROOTS
from openrlhf.config.schema import build, settings
from openrlhf.config.synonyms import COMMON_SYNONYMS, resolve
from openrlhf.errors import UserError


def test_every_synonym_stands_for_a_setting_and_hides_none():
    targets = [name for old in COMMON_SYNONYMS for name, _ in resolve(COMMON_SYNONYMS, old, None)]
    assert [name for name in targets if not any(name in settings(root) for root in ROOTS)] == []
    assert [old for old in COMMON_SYNONYMS if old in settings(SFTConfig)] == []


def test_a_command_line_of_openrlhf_0_9_is_read(good_flags):
    old = (
        "--save_path ./out --save_steps -1 --logging_steps 2 --eval_steps -1 "
        "--train_batch_size 16 --micro_train_batch_size 2 --pretrain ./model --bf16 "
        "--max_epochs 1 --max_len 512 --zero_stage 3 --learning_rate 1e-5 --dataset "
        "./rows.jsonl --input_key question --output_key answer --adam_betas 0.9 0.98 "
        "--flash_attn --gradient_checkpointing --packing_samples --load_checkpoint "
        "--max_ckpt_mem 100 --l2 0.1 --lora_rank 8 --target_modules q_proj v_proj "
        "--use_tensorboard ./board --max_samples 500000 --local_rank=1"
    )
    config = parse_config(SFTConfig, old.split())
    assert config == build(
        SFTConfig,
        {
            "ckpt.output_dir": "./out",
            "logger.logging_steps": 2,
            "train.batch_size": 16,
            "train.micro_batch_size": 2,
            "model.model_name_or_path": "./model",
            "train.max_epochs": 1,
            "data.max_len": 512,
            "ds.zero_stage": 3,
            "adam.lr": 1e-5,
            "data.dataset": "./rows.jsonl",
            "data.input_key": "question",
            "data.output_key": "answer",
            "adam.betas": (0.9, 0.98),
            "ds.attn_implementation": "flash_attention_2",
            "model.gradient_checkpointing_enable": True,
            "ds.packing_samples": True,
            "ckpt.load_enable": True,
            "ckpt.max_mem": 100.0,
            "adam.weight_decay": 0.1,
            "ds.lora.rank": 8,
            "ds.lora.target_modules": ("q_proj", "v_proj"),
            "logger.tensorboard_dir": "./board",
            "data.max_samples": 500000,
        },
    )


def test_an_old_switch_can_be_off(good_flags):
    assert parse_config(SFTConfig, [*good_flags, "--bf16", "false"]).ds.param_dtype == "fp32"
    with pytest.raises(UserError, match="--bf16 is 'fp64'"):
        parse_config(SFTConfig, [*good_flags, "--bf16", "fp64"])


def test_use_wandb_is_a_switch_that_takes_a_key(good_flags):
    assert parse_config(SFTConfig, [*good_flags, "--use_wandb"]).logger.wandb.enable
    with_key = parse_config(SFTConfig, [*good_flags, "--use_wandb", "s3cret"]).logger.wandb
    assert (with_key.enable, with_key.key) == (True, "s3cret")


def test_old_and_new_names_of_one_setting_are_one_name(good_flags):
    assert parse_config(SFTConfig, [*good_flags, "--seed", "1", "--train.seed", "2"]).train.seed == 2
    assert parse_config(SFTConfig, [*good_flags, "--train.seed", "2", "--seed", "1"]).train.seed == 1


def test_a_namespace_has_nested_and_flat_names():
    config = build(
        SFTConfig,
        {"data.input_key": "q", "train.batch_size": 4, "ds.lora.rank": 2, "model.model_name_or_path": "m"},
    )
    args = as_namespace(config)
    assert (args.data.input_key, args.input_key) == ("q", "q")
    assert (args.train.batch_size, args.train_batch_size) == (4, 4)
    assert (args.ds.lora.rank, args.lora_rank, args.pretrain) == (2, 2, "m")
    assert (args.bf16, args.flash_attn, args.use_wandb, args.optim) == (True, False, False, "adam")


def test_a_namespace_holds_no_secret():
    args = as_namespace(build(SFTConfig, {"logger.wandb.key": "s3cret"}))
    assert "s3cret" not in repr(args)


def test_a_namespace_goes_back_to_the_same_configuration():
    config = build(SFTConfig, {"data.max_len": 77, "ds.param_dtype": "fp32", "adam.betas": (0.5, 0.6), "optim": "muon"})
    assert from_namespace(SFTConfig, as_namespace(config)) == config
    assert from_namespace(SFTConfig, config) == config
    assert from_namespace(SFTConfig, Namespace()) == SFTConfig()


def test_any_object_with_some_of_the_names_will_do():
    args = SimpleNamespace(
        data=SimpleNamespace(input_key="q"),
        train_batch_size=4,
        bf16=False,
        use_wandb=None,
        unrelated=object(),
    )
    assert from_namespace(SFTConfig, args) == build(
        SFTConfig, {"data.input_key": "q", "train.batch_size": 4, "ds.param_dtype": "fp32"}
    )


def test_a_nested_name_wins_over_its_flat_one():
    args = SimpleNamespace(max_len=1, data=SimpleNamespace(max_len=2))
    assert from_namespace(SFTConfig, args).data.max_len == 2


def test_a_flat_word_with_the_name_of_a_group_is_no_group():
    assert from_namespace(SFTConfig, SimpleNamespace(data="rows.jsonl", eval="x")) == SFTConfig()


def test_a_wrong_value_in_a_namespace_is_named():
    with pytest.raises(UserError, match=r"args\.train_batch_size is 'x'"):
        from_namespace(SFTConfig, SimpleNamespace(train_batch_size="x"))
