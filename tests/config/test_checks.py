"""What a configuration cannot mean is found before anything is loaded."""

from __future__ import annotations

import json
import os

import pytest

from openrlhf.config import DataConfig, SFTConfig, check_config, parse_config
from openrlhf.config.disk import folder_of_model
from openrlhf.config.iterate_settings import RejectionConfig
from openrlhf.config.schema import build
from openrlhf.config.settings import InspectConfig, PrepareConfig
from openrlhf.datasets.prepare import prepare_sources
from openrlhf.errors import UserError

COMBINATIONS = [
    ("--ds.ring_attn_size 2 --ds.packing_samples", 3, "does not divide the 3 ranks"),
    ("--ds.ring_attn_size 2 --ds.packing_samples false", 2, "add --ds.packing_samples"),
    ("--ds.ring_attn_size 2 --train.micro_batch_size 4", 2, "add --ds.packing_samples"),
    ("--ds.tensor_parallel_size 2 --ds.zero_stage 3", 2, "does not go with --ds.zero_stage 3"),
    (
        "--ds.tensor_parallel_size 2 --ds.ring_attn_size 2 --ds.packing_samples",
        4,
        "--ds.tensor_parallel_size 2 does not go with --ds.ring_attn_size 2",
    ),
    ("--ds.tensor_parallel_size 2 --ds.lora.rank 8", 2, "does not share out adapters"),
    ("--ds.tensor_parallel_size 2 --optim muon", 2, "--optim muon needs the whole"),
    ("--train.batch_size 3", 4, "--train.batch_size 3 is below the 4 ranks"),
    ("--train.max_tokens_per_micro_batch 1000", 1, "no room for a sample of --data.max_len 2048"),
    ("--ds.adam_offload --ds.zero_stage 0", 1, "--ds.adam_offload needs --ds.zero_stage 1, 2 or 3"),
    ("--ds.grad_accum_dtype fp32 --ds.zero_stage 0", 1, "--ds.grad_accum_dtype fp32 needs --ds.zero_stage 1, 2 or 3"),
    ("--ds.adam_offload --optim muon", 1, "leave one of them out"),
    ("--ds.zpg 2 --ds.zero_stage 2", 2, "--ds.zpg 2 needs --ds.zero_stage 3"),
    ("--ds.zpg 2 --ds.zero_stage 3", 3, "--ds.zpg 2 does not divide the 3 ranks"),
    ("--model.pretrain_mode_enable --data.apply_chat_template", 1, "renders chats"),
    ("--data.multiturn --data.targets last_turn", 1, "--data.multiturn means --data.targets all_turns"),
    ("--data.input_template Question:", 1, "must hold the place of the input"),
    ("--data.input_template {}{}", 1, "must hold the place of the input"),
    ("--data.input_template {input}", 1, "must hold the place of the input"),
    ("--data.input_template {", 1, "must hold the place of the input"),
    ("--data.input_template {}\\n", 1, "holds a backslash and an n"),
    ("--data.dataset_probs 0.5,0.5", 1, "gives 2 numbers, but --data.dataset names 1"),
    ("--data.dataset_probs some", 1, "must be numbers above 0"),
    ("--data.dataset_probs 0", 1, "must be numbers above 0"),
    ("--data.dataset_probs 1e99999999", 1, "from 1e-9 to 1e9, by commas"),
    ("--data.dataset_probs 1e300", 1, "from 1e-9 to 1e9, by commas"),
    ("--eval.steps 5", 1, "add --eval.dataset"),
    ("--eval.every_epoch", 1, "--eval.every_epoch has nothing to evaluate: add --eval.dataset"),
    ("--train.early_stop_patience 2", 1, "add --eval.dataset and --eval.steps or --eval.every_epoch"),
    ("--train.early_stop_patience 2 --eval.dataset ./rows.jsonl", 1, "add --eval.dataset and --eval.steps"),
    ("--train.callbacks my_package.Sampler", 1, "'my_package.Sampler' must be module:Name"),
    ("--train.callbacks a:B,", 1, "'' must be module:Name"),
    ("--ckpt.save_hf", 1, "add --ckpt.save_steps"),
    ("--ckpt.disable_ds --ckpt.save_steps 5", 1, "leave it out, or add --ckpt.save_hf"),
    ("--ckpt.disable_ds --ckpt.every_epoch", 1, "leave it out, or add --ckpt.save_hf"),
    ("--ckpt.export_best --ckpt.every_epoch", 1, "--ckpt.export_best goes back to a training checkpoint"),
    ("--ckpt.export_best --eval.dataset ./rows.jsonl", 1, "--ckpt.export_best goes back to a training checkpoint"),
    ("--data.dataset ./gone.jsonl", 1, "--data.dataset ./gone.jsonl does not exist"),
    ("--data.dataset gone.jsonl.gz", 1, "--data.dataset gone.jsonl.gz does not exist"),
    ("--data.dataset gone.ndjson", 1, "--data.dataset gone.ndjson does not exist"),
    ("--data.dataset gone.csv.bz2", 1, "--data.dataset gone.csv.bz2 does not exist"),
    ("--data.dataset ./rows.jsonl,./gone.parquet", 1, "./gone.parquet does not exist"),
    ("--data.dataset ./*.jsonl", 1, "./*.jsonl is a pattern, and patterns are not expanded: give the folder"),
    ("--data.dataset ./model@sub", 1, "the folder ./model holds no sub"),
    ("--eval.dataset ~/gone-for-good", 1, "--eval.dataset ~/gone-for-good does not exist"),
    ("--model.model_name_or_path ./gone", 1, "--model.model_name_or_path ./gone does not exist"),
    ("--model.model_name_or_path model/gone", 1, "of it model exists"),
    ("--model.model_name_or_path a/b/c", 1, "a/b/c does not exist"),
    ("--model.model_name_or_path rows.jsonl", 1, "is a file; give the folder"),
    ("--model.model_name_or_path .", 1, ". is no model: it has no config.json"),
    ("--ckpt.output_dir ./model", 1, "which would be overwritten"),
    ("--ckpt.output_dir rows.jsonl/out", 1, "--ckpt.output_dir rows.jsonl/out cannot be written"),
    ("--ckpt.path rows.jsonl", 1, "--ckpt.path rows.jsonl cannot be written"),
    ("--logger.tensorboard_dir rows.jsonl", 1, "--logger.tensorboard_dir rows.jsonl cannot be written"),
]


@pytest.mark.parametrize(("flags", "world_size", "problem"), COMBINATIONS)
def test_an_impossible_combination_is_one_problem(good_flags, monkeypatch, flags, world_size, problem):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    with pytest.raises(UserError) as caught:
        parse_config(SFTConfig, good_flags + flags.split(" "))
    (found,) = caught.value.problems
    assert problem in found


@pytest.mark.parametrize(
    ("flags", "world_size"),
    [
        ("--ds.ring_attn_size 2 --ds.packing_samples --train.batch_size 2", 4),
        ("--ds.tensor_parallel_size 2 --ds.zero_stage 2", 2),
        ("--ds.ring_attn_size 2", 2),
        ("--ds.zpg 2", 2),
        ("--train.batch_size 4", 4),
        ("--train.max_tokens_per_micro_batch 1024 --ds.ring_attn_size 2 --ds.packing_samples", 2),
        ("--data.dataset_probs .7,1e-1 --data.dataset ./rows.jsonl,some-org/some-name", 1),
        ("--data.dataset hf://datasets/some/rows", 1),
        ("--model.model_name_or_path some-org/some-model", 1),
        ("--model.model_name_or_path gpt2", 1),
        ("--ckpt.save_hf --ckpt.save_steps 5 --ckpt.disable_ds", 1),
        ("--ckpt.save_hf --ckpt.every_epoch --ckpt.disable_ds", 1),
        ("--ckpt.export_best --ckpt.every_epoch --eval.dataset ./rows.jsonl", 1),
        ("--eval.steps 5 --eval.dataset ./rows.jsonl", 1),
        ("--eval.steps 5 --eval.dataset ./rows.jsonl --train.early_stop_patience 2", 1),
        ("--eval.every_epoch --eval.dataset ./rows.jsonl --train.early_stop_patience 2", 1),
        ("--train.callbacks my_package.mine:Sampler,other:Outer.Inner", 1),
        ("--data.input_template {{}}{}", 1),
    ],
)
def test_what_can_be_is_not_refused(good_flags, monkeypatch, flags, world_size):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    parse_config(SFTConfig, good_flags + flags.split(" "))


@pytest.mark.parametrize(
    ("root", "more"),
    [
        (InspectConfig, ""),
        (PrepareConfig, ""),
        (RejectionConfig, "--score.reward exact"),
    ],
)
@pytest.mark.parametrize(
    "flags",
    [
        "--ds.ring_attn_size 2",
        "--ds.tensor_parallel_size 2",
        "--ds.zpg 4 --ds.zero_stage 3",
        "--ds.use_liger_kernel",
        "--ds.load_in_4bit --ds.lora.rank 8",
    ],
)
def test_flags_of_several_ranks_and_their_packages_pass_where_one_process_prepares(
    good_flags, monkeypatch, root, more, flags
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    needs_package = "liger" in flags or "4bit" in flags
    if root is RejectionConfig and needs_package:  # its training has the same packages, and comes after the answers
        with pytest.raises(UserError, match="needs a package"):
            parse_config(root, good_flags + f"{more} {flags}".split())
    else:
        parse_config(root, good_flags + f"{more} {flags}".split())
    with pytest.raises(UserError, match="ranks of this run|needs a package"):
        parse_config(SFTConfig, good_flags + flags.split())


def test_rejection_sampling_evaluates_after_no_epoch(good_flags):
    """Its held-out prompts are answered between the trainings, which evaluate nothing: neither can stop them early."""
    with pytest.raises(UserError, match="--eval.every_epoch"):
        parse_config(RejectionConfig, [*good_flags, "--score.reward", "exact", "--eval.every_epoch"])


def test_what_every_run_needs_is_asked_for():
    found = check_config(build(SFTConfig, {}), world_size=1)
    assert [problem.split(" is missing")[0] for problem in found] == [
        "--model.model_name_or_path",
        "--data.dataset",
    ]


def test_an_adapter_is_named_as_such(good_flags, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    with pytest.raises(UserError, match="an adapter of base: .* --ds.lora.adapter_name_or_path"):
        parse_config(SFTConfig, [*good_flags, "--model.model_name_or_path", "adapter"])
    (of_reference,) = folder_of_model("--ref.model_name_or_path", "adapter")  # which nobody trains
    assert "is an adapter of base: merge the two by openrlhf.cli.lora_combiner" in of_reference


@pytest.mark.parametrize(
    ("flag", "package"), [("ds.use_liger_kernel", "liger_kernel"), ("ds.load_in_4bit", "bitsandbytes")]
)
def test_a_missing_package_is_named_with_its_install_line(flag, package, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    values = {flag: True, "ds.lora.rank": 4}
    assert any("pip install" in problem for problem in check_config(build(SFTConfig, values), world_size=1))


@pytest.mark.parametrize(
    ("values", "problem"),
    [({}, "add adapters"), ({"ds.zero_stage": 3, "ds.lora.rank": 4}, "--ds.zero_stage 3")],
)
def test_four_bits_need_adapters_and_whole_weights(values, problem, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    found = check_config(build(SFTConfig, {"ds.load_in_4bit": True, **values}), world_size=1)
    assert any(problem in sentence for sentence in found)


@pytest.mark.parametrize(("has_cuda", "num_problems"), [(False, 1), (True, 0)], ids=["CPU", "CUDA"])
def test_the_compiler_is_refused_where_there_is_no_cuda_device(good_flags, monkeypatch, has_cuda, num_problems):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    flags = dict(zip(("model.model_name_or_path", "data.dataset"), good_flags[1::2], strict=True))
    found = check_config(build(SFTConfig, flags | {"ds.deepcompile": True}), world_size=1)
    assert len(found) == num_problems
    assert all("--ds.deepcompile" in problem for problem in found)


@pytest.mark.parametrize("template", ["{}", "{{}} {}", "{0}", "{}{}", "{", "{x}", "none", "{{}}"])
def test_a_template_is_right_for_the_flags_where_it_is_right_for_the_data(good_flags, template):
    flags = dict(zip(("model.model_name_or_path", "data.dataset"), good_flags[1::2], strict=True))
    is_refused = bool(check_config(build(SFTConfig, flags | {"data.input_template": template}), world_size=1))
    with pytest.raises((UserError, AttributeError)) as raised:  # without a tokenizer a template that passes fails later
        prepare_sources([], None, DataConfig(input_template=template), pretrain_mode=False)
    assert ("--data.input_template" in str(raised.value)) == is_refused


@pytest.mark.parametrize(
    "flag",
    ["model.model_name_or_path", "data.dataset", "eval.prompts", "ckpt.output_dir", "ds.lora.adapter_name_or_path"],
)
def test_the_home_of_nobody_is_words(good_flags, flag):
    with pytest.raises(UserError, match=rf"--{flag} ~nobody_here/x"):
        parse_config(SFTConfig, [*good_flags, f"--{flag}", "~nobody_here/x"])


def test_a_file_of_settings_of_nobody_is_words(good_flags):
    with pytest.raises(UserError, match="~nobody_here/run.yaml cannot be read"):
        parse_config(SFTConfig, [*good_flags, "--config", "~nobody_here/run.yaml"])


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("ds.lora.adapter_name_or_path", "ckpt/global_step2"),
        ("eval.prompts", "rows.jsonl,ckpt/global_step2/rows.jsonl"),
        ("eval.prompts_reward", "math,ckpt/global_step2/rules.py:score"),
    ],
)
def test_what_a_run_would_move_away_before_it_reads_it_is_refused(good_flags, flag, value):
    given = dict(zip(("model.model_name_or_path", "data.dataset"), good_flags[1::2], strict=True))
    found = check_config(build(SFTConfig, given | {"ckpt.path": "ckpt", flag: value}), world_size=1)
    assert any(problem.startswith(f"--{flag} ckpt/global_step2") and "among the" in problem for problem in found), found


def test_checks_write_nothing(good_flags, tmp_path):
    before = sorted(os.listdir(tmp_path))
    parse_config(SFTConfig, [*good_flags, "--ckpt.output_dir", "new/out", "--ckpt.path", "new/ckpt"])
    assert sorted(os.listdir(tmp_path)) == before


LORA = {"ds.lora.rank": 4}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"ds.lora.use_rslora": True}, "--ds.lora.use_rslora is a matter of adapters"),
        ({"ds.lora.layers_to_transform": (1,)}, "--ds.lora.layers_to_transform is a matter of adapters"),
        (LORA | {"ds.lora.use_dora": True, "ds.zero_stage": 3}, "use --ds.zero_stage 2 or less"),
        (LORA | {"ds.lora.use_dora": True, "ds.lora.target_parameters": ("x",)}, "which DoRA cannot"),
        (LORA | {"ds.lora.dropout": 0.1, "ds.lora.target_parameters": ("x",)}, "--ds.lora.dropout 0.1"),
        (LORA | {"ds.lora.adapter_name_or_path": "me/a"}, "leave --ds.lora.rank out"),
        ({"ds.lora.adapter_name_or_path": "./nowhere"}, "--ds.lora.adapter_name_or_path ./nowhere holds no adapter"),
        (LORA | {"model.trainable": ("lm_head",)}, "use --ds.lora.modules_to_save"),
        ({"model.trainable": ("(",)}, "--model.trainable ( is no regular expression"),
        ({"ckpt.merge_lora": True}, "--ckpt.merge_lora has no adapter to merge"),
        ({"ds.lora.adapter_name_or_path": "me/a", "ds.tensor_parallel_size": 2}, "does not share out adapters"),
    ],
)
def test_adapters_that_cannot_be_are_refused_by_their_flag(values, problem):
    found = check_config(build(SFTConfig, values), world_size=2)
    assert any(problem in sentence for sentence in found), found


@pytest.mark.parametrize(
    ("settings", "zero_stage", "problem"),
    [
        ({"peft_type": "IA3"}, 2, "is an adapter of PEFT's kind IA3"),
        ({"peft_type": "LORA", "use_dora": True}, 3, "is a DoRA adapter"),
        ({"peft_type": "LORA", "use_dora": True}, 2, None),
        ([], 2, "is an adapter of PEFT's kind None"),
    ],
)
def test_the_adapter_to_start_from_is_looked_at(tmp_path, settings, zero_stage, problem):
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    values = {"ds.lora.adapter_name_or_path": str(tmp_path), "ds.zero_stage": zero_stage}
    found = [one for one in check_config(build(SFTConfig, values), world_size=1) if "adapter" in one]
    assert (found == []) if problem is None else (problem in found[0])


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ({"license": "Apache 2.0"}, "--hub.license Apache 2.0 is none of the hub's names. Did you mean apache-2.0?"),
        ({"license": "other"}, "add --hub.license_name"),
        (
            {"license": "mit", "license_link": "LICENSE"},
            "--hub.license_link is read by the hub with",
        ),
        ({"language": ("English",)}, "--hub.language English is no code of a language"),
        ({"license": "llama3.1", "language": ("en", "zh-TW")}, None),
        ({"license": "other", "license_name": "own", "license_link": "LICENSE"}, None),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_refused_at_once(card, problem):
    values = {f"hub.{name}": value for name, value in card.items()}
    found = [one for one in check_config(build(SFTConfig, values), world_size=1) if "--hub" in one]
    assert (found == []) if problem is None else (problem in found[0])
