"""TRL's names → our settings: each is translated, told to change nothing, or refused by name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from transformers import HfArgumentParser, Qwen3MoeConfig
from transformers.trainer_pt_utils import AcceleratorConfig

from openrlhf.config import DPOConfig, InspectConfig, SFTConfig, nearest_root, parse_config
from openrlhf.config.estimate_settings import EstimateConfig
from openrlhf.config.recipes import _KINDS, Recipe, read_recipe
from openrlhf.config.roots import INSPECTIONS
from openrlhf.config.schema import settings
from openrlhf.config.sources import read_argv
from openrlhf.config.trl_names import RECIPE_NAMES, ModelNames, SftNames, rule_of
from openrlhf.config.trl_translation import Translation, translate
from openrlhf.errors import UserError
from tests.config.conftest import good_flags  # noqa: F401

# the fields of SFTConfig of TRL 1.16 with transformers 5.23; TRL is not installed beside the tests
SFT_CONFIG_1_16 = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps average_tokens_across_devices max_grad_norm label_smoothing_factor
    bf16 fp16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size
    prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps
    include_for_metrics batch_eval_metrics save_only_model save_strategy save_steps save_on_each_node save_total_limit
    enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
    parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names
    train_sampling_strategy length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
    ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics do_train do_eval
    do_predict resume_from_checkpoint local_rank model_init_kwargs trust_remote_code router_aux_loss_coef
    chat_template_path dataset_text_field dataset_kwargs dataset_num_proc eos_token max_length truncation_mode
    shuffle_dataset packing packing_strategy padding_free pad_to_multiple_of eval_packing completion_only_loss
    assistant_only_loss loss_type activation_offloading pad_token
"""
MODEL_CONFIG_1_16 = """
    model_name_or_path model_revision dtype attn_implementation use_peft lora_r lora_alpha lora_dropout
    lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora load_in_8bit
    load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage
"""
WITH_LOWEST = {"lr_scheduler_type": "cosine_with_min_lr"}


def translated(num_ranks: int = 1, num_rows: int | None = None, **given: Any) -> Translation:
    return translate(given, given.keys(), num_ranks, num_rows)


def recipe(tmp_path: Path, content: dict[str, Any] | str, *words: str, num_ranks: int = 1) -> Recipe:
    is_text = isinstance(content, str)
    path = tmp_path / ("recipe.toml" if is_text else "recipe.yaml")
    path.write_text(content if is_text else yaml.safe_dump(content))
    given, problems = read_argv(["@", str(path), *words])
    assert problems == []
    return read_recipe(SFTConfig, given, num_ranks)


def values(of: Recipe) -> dict[str, Any]:
    return {one.name: one.value for one in of.given}


def test_a_rule_names_a_setting_that_there_is() -> None:
    named = {rule.setting for field in RECIPE_NAMES.values() if (rule := rule_of(field)) and rule.setting}
    assert named - settings(SFTConfig).keys() == set()


def test_the_defaults_of_trl_make_a_configuration(tmp_path: Path) -> None:
    assert translated().settings.keys() <= settings(SFTConfig).keys()
    assert translated().problems == []
    assert translated().rows == []


@pytest.mark.parametrize("num_ranks", [1, 2, 8])
def test_batch_is_that_of_all_ranks(num_ranks: int) -> None:
    of = translated(num_ranks, per_device_train_batch_size=3, gradient_accumulation_steps=5)
    assert of.settings["train.batch_size"] == 15 * num_ranks
    assert of.settings["train.micro_batch_size"] == 3
    assert of.rows == [
        (
            "per_device_train_batch_size 3, gradient_accumulation_steps 5",
            f"train.batch_size {15 * num_ranks}, train.micro_batch_size 3 (3 × 5 × {num_ranks} ranks)",
        )
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"learning_rate": 3e-4}, {"adam.lr": 3e-4}),
        ({"adam_beta2": 0.95}, {"adam.betas": [0.9, 0.95]}),
        ({"max_steps": 7}, {"train.max_steps": 7, "train.max_epochs": 7}),
        ({"num_train_epochs": 4}, {"train.max_epochs": 4}),
        ({"max_length": 77}, {"data.max_len": 77, "data.overlong": "truncate"}),
        ({"max_seq_length": 78}, {"data.max_len": 78}),
        ({"max_length": None}, {"data.max_len": 2**40}),
        ({"bf16": False}, {"ds.param_dtype": "fp32"}),
        ({"fp16": True}, {"ds.param_dtype": "fp16"}),
        ({"bf16": False, "torch_dtype": "bfloat16"}, {"ds.param_dtype": "bf16"}),
        ({}, {"ds.param_dtype": "bf16"}),
        ({"warmup_ratio": 0.1}, {"lr_warmup_ratio": 0.1}),
        ({"warmup_ratio": None, "warmup_steps": None}, {"lr_warmup_ratio": 0.0}),
        ({"num_train_epochs": 0, "max_steps": 7}, {"train.max_steps": 7}),
        (WITH_LOWEST | {"lr_scheduler_kwargs": {"min_lr_rate": 0.2}}, {"min_lr_ratio": 0.2}),
        (WITH_LOWEST | {"lr_scheduler_kwargs": '{"min_lr": 0.25}', "learning_rate": 0.5}, {"min_lr_ratio": 0.5}),
        (WITH_LOWEST | {"lr_scheduler_kwargs": {"min_lr": "1e-3"}, "learning_rate": 0.5}, {"min_lr_ratio": 0.002}),
        ({"optim": "paged_adamw_32bit"}, {"optim": "adam"}),
        ({"lr_scheduler_type": "cosine"}, {"lr_scheduler": "cosine"}),
        ({"packing": True}, {"ds.packing_samples": True}),
        ({"padding_free": True}, {"ds.packing_samples": True}),
        ({"gradient_checkpointing": False}, {"model.gradient_checkpointing_enable": False}),
        ({"activation_checkpointing": False}, {"model.gradient_checkpointing_enable": False}),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
            {"model.gradient_checkpointing_enable": True, "model.gradient_checkpointing_reentrant": True},
        ),
        ({"assistant_only_loss": True}, {"data.targets": "all_turns"}),
        ({"completion_only_loss": True}, {"data.targets": "completion"}),
        ({"completion_only_loss": False}, {"data.targets": "everything"}),
        ({}, {"data.targets": "completion_or_everything"}),
        ({"save_strategy": "steps", "save_steps": 9}, {"ckpt.save_steps": 9}),
        ({"save_strategy": "epoch"}, {"ckpt.every_epoch": True}),
        ({"load_best_model_at_end": True, "greater_is_better": False}, {"ckpt.export_best": True}),
        ({"save_steps": -1}, {"ckpt.save_steps": 10**9}),
        ({"save_steps": 0}, {"ckpt.save_steps": 10**9}),
        ({"save_total_limit": 2}, {"ckpt.max_num": 2}),
        ({"save_total_limit": -1}, {"ckpt.max_num": 10**6}),
        ({"save_total_limit": 0}, {"ckpt.max_num": 10**6}),
        ({"save_only_model": True}, {"ckpt.disable_ds": True, "ckpt.save_hf": True}),
        ({"eval_strategy": "steps", "eval_steps": 6}, {"eval.steps": 6}),
        ({"evaluation_strategy": "steps", "logging_steps": 3}, {"eval.steps": 3}),
        ({"report_to": ["wandb"]}, {"logger.wandb.enable": True}),
        ({"report_to": ["comet_ml", "mlflow"]}, {"logger.trackers": ("comet", "mlflow")}),
        ({"report_to": "trackio", "project": "mine"}, {"logger.wandb.project": "mine"}),
        ({"eval_strategy": "epoch"}, {"eval.every_epoch": True}),
        ({"project": "mine", "wandb_project": "other"}, {"logger.wandb.project": "other"}),
        ({"report_to": "tensorboard", "output_dir": "out"}, {"logger.tensorboard_dir": "out/runs"}),
        ({"dataset_text_field": "prose"}, {"data.input_key": "prose", "data.format": "trl"}),
        ({}, {"data.format": "trl"}),
        ({"eos_token": "<|im_end|>"}, {"data.eos_token": "<|im_end|>"}),
        ({"loss_type": "dft"}, {"train.loss": "dft"}),
        ({"optim": "muon"}, {"optim": "muon"}),
        ({"assistant_only_loss": True, "completion_only_loss": False}, {"data.targets": "all_turns"}),
        ({"use_liger_kernel": True}, {"ds.use_liger_kernel": True}),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, {"ds.zero_stage": 3}),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}},
            {"ds.zero_stage": 2, "ds.adam_offload": True},
        ),
        ({"output_dir": "out"}, {"ckpt.output_dir": "out", "ckpt.path": "out/checkpoints"}),
        ({"use_peft": True, "lora_r": 4}, {"ds.lora.rank": 4, "ds.lora.alpha": 32, "ds.lora.dropout": 0.05}),
        ({"push_to_hub": True, "output_dir": "a/b"}, {"hub.push": True, "hub.model_id": "b"}),
        ({"dataset_name": "x/y", "dataset_config": "z"}, {"data.dataset": "x/y@z", "data.dataset_split": "train"}),
        ({"ddp_timeout": 600}, {"train.comm_timeout_minutes": 10}),
    ],
)  # fmt: skip
def test_what_a_name_becomes(given: dict[str, Any], expected: dict[str, Any]) -> None:
    of = translated(**given)
    assert of.problems == []
    assert {name: of.settings.get(name) for name in expected} == expected
    told = " ".join(here for _, here in of.rows)
    assert all(name in told for name in expected) or not given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha 5"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor 0.1"),
        ({"optim": "adafactor"}, "optim adafactor"),
        ({"optim": "paged_adamw_8bit"}, "optim paged_adamw_8bit"),
        ({"fsdp": "full_shard"}, "ds.zero_stage 3"),
        ({"auto_find_batch_size": True}, "train.max_tokens_per_micro_batch"),
        ({"eval_delay": 2}, "eval_delay"),
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"lr_scheduler_kwargs": {"num_cycles": 3}, "lr_scheduler_type": "cosine"}, "num_cycles"),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 3}},
            "lr_scheduler_type warmup_stable_decay cannot be had here: linear, cosine",
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}}, "offload_param"),
        ({"deepspeed": "/no/such.json"}, "cannot be read"),
        ({"save_steps": 0.2}, "give it in steps"),
        ({"logging_steps": 0}, "logging_steps 0 cannot be had here: give a number of steps"),
        ({"eval_strategy": "steps", "eval_steps": -1}, "eval_steps -1 cannot be had here: give a number of steps"),
        ({"eval_strategy": "steps", "logging_steps": -2}, "logging_steps -2"),
        ({"warmup_steps": 10}, "give warmup_ratio"),
        ({"num_train_epochs": 0.5}, "give max_steps"),
        ({"num_train_epochs": 0}, "num_train_epochs 0 cannot be had here: give a number above 0, or max_steps"),
        ({"num_train_epochs": -1}, "num_train_epochs -1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps 0 cannot be had here: give a whole number"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"accelerator_config": {"split_batches": True}}, "leave split_batches out: per_device_train_batch_size is"),
        ({"accelerator_config": AcceleratorConfig(split_batches=True)}, "leave split_batches out"),
        ({"accelerator_config": '{"gradient_accumulation_kwargs": {"num_steps": 2}}'}, "gradient_accumulation_steps"),
        ({"max_grad_norm": None}, "max_grad_norm none cannot be had here: give a value, or leave it out, which is 1"),
        ({"weight_decay": None}, "weight_decay none"),
        ({"seed": None}, "seed none"),
        ({"max_steps": None}, "max_steps none"),
        ({"save_steps": None}, "save_steps none"),
        ({"save_strategy": "best"}, "save_strategy best"),
        ({"load_best_model_at_end": True, "metric_for_best_model": "bleu"}, "metric_for_best_model bleu"),
        ({"load_best_model_at_end": True, "greater_is_better": True}, "greater_is_better true"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "give dtype, attn_implementation"),
        ({"dataset_mixture": {"datasets": [{"id": "a", "fraction": 0.5}]}}, "its fraction cannot be read"),
        ({"datasets": [{"path": "json", "data_files": "a.jsonl"}]}, "its data_files cannot be read"),
        ({"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}}, "to nvme is not here"),
        (WITH_LOWEST | {"lr_scheduler_kwargs": {"min_lr": "low"}}, "must be numbers"),
        ({"loss_type": "bco"}, "loss_type bco"),
        ({"model_revision": "v2"}, "model_revision v2"),
        ({"dataset_streaming": True}, "dataset_streaming true"),
        ({"chat_template_path": "tests"}, "call clone_chat_template(model, tokenizer, 'tests') of openrlhf.compat.trl"),
        ({"chat_template_path": "Qwen/Qwen3-0.6B"}, "cannot be had here: there, a tokenizer gives its tokens"),
        (
            {"use_vllm": True},
            "use_vllm true cannot be had here: leave it out; for samples along the way use --eval.prompts",
        ),
        ({"dataset_mixture": {"datasets": [{"id": "a", "weight": 0.5}]}}, "data.dataset_probs"),
        ({"dataset_mixture": {"datasets": [{"id": "a"}], "test_split_size": 3}}, "eval.dataset"),
        ({"dataset_mixture": {"datasets": [{"columns": ["messages"]}]}}, "each with an id"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    (problem,) = translated(**given).problems
    assert said in problem


def test_shares_of_a_run_are_counted_in_steps_where_the_rows_are_known() -> None:
    of = translated(
        num_rows=100,
        per_device_train_batch_size=10,
        num_train_epochs=1.5,
        save_steps=0.2,
        warmup_steps=4,
        eval_steps=0.1,
        eval_strategy="steps",
    )
    assert of.problems == []
    assert of.settings["train.max_steps"] == 15
    assert of.settings["train.max_epochs"] == 2
    assert of.settings["ckpt.save_steps"] == 3
    assert of.settings["eval.steps"] == 2
    assert -(-of.settings["lr_warmup_ratio"] * 15 // 1) == 4


def test_a_name_that_changes_nothing_says_why() -> None:
    ((there, here),) = translated(dataloader_num_workers=4).rows
    assert there == "dataloader_num_workers 4"
    assert here.startswith("changes nothing: ")


@pytest.mark.parametrize(("dtype", "note"), [("float64", " (dtype float64 is not here)"), ("float32", "")])
def test_a_dtype_that_is_not_here_is_told(dtype: str, note: str) -> None:
    ((_, here),) = translated(dtype=dtype, bf16=False).rows
    assert here == f"ds.param_dtype fp32{note}"


def test_the_project_of_trackio_gives_way_to_that_of_wandb() -> None:
    told = dict(translated(project="mine", wandb_project="other", trackio_space_id="me/space").rows)
    assert told["project mine"] == "changes nothing: wandb_project is every tracker's"
    assert told["trackio_space_id me/space"].startswith("changes nothing: set TRACKIO_SPACE_ID")
    assert "logger.wandb.project" not in translated().settings


@pytest.mark.parametrize("value", ["hf_abcdef", ["hf_abcdef"]])
def test_a_token_of_the_hub_is_told_without_its_value(
    tmp_path: Path, capsys: pytest.CaptureFixture, value: Any
) -> None:
    of = recipe(tmp_path, {"model_name_or_path": "m", "hub_token": value})
    of.tell()
    said = capsys.readouterr().err + "".join(of.problems) + repr(of.translation)
    assert "hub_token [hidden]" in said or "hub_token is [hidden]; it must be" in said
    assert "hf_abcdef" not in said
    assert "hf_abcdef" not in repr(SftNames(hub_token="hf_abcdef"))


def test_every_name_of_trl_1_16_is_known() -> None:
    assert {*SFT_CONFIG_1_16.split()} - {field.name for field in dataclasses.fields(SftNames)} == set()
    assert {field.name for field in dataclasses.fields(ModelNames)} - {"torch_dtype"} == {*MODEL_CONFIG_1_16.split()}


@pytest.mark.parametrize(
    ("name", "value"), [("include_num_input_tokens_seen", "non_padding"), ("pad_to_multiple_of", "auto")]
)
def test_values_of_trl_1_16_are_taken(tmp_path: Path, name: str, value: str) -> None:
    of = recipe(tmp_path, {"model_name_or_path": "m", name: value})
    assert of.problems == []
    assert any(there == f"{name} {value}" for there, _ in of.translation.rows)


def test_a_name_with_trls_default_is_not_refused() -> None:
    given = {field.name: field.default for field in dataclasses.fields(SftNames)}
    assert translated(**given).problems == []


# --- recipes in files ------------------------------------------------------------------------------------------------


def test_a_recipe_in_yaml_is_translated_and_flags_win(tmp_path: Path) -> None:
    content = {
        "model_name_or_path": "m",
        "dataset_name": "d.jsonl",
        "per_device_train_batch_size": 2,
        "learning_rate": "2e-5",
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    }
    of = recipe(tmp_path, content, "--gradient_accumulation_steps=4", "--train.seed", "7", num_ranks=2)
    assert of.problems == []
    got = values(of)
    assert got["train.batch_size"] == 16
    assert got["adam.lr"] == 2e-5
    assert got["min_lr_ratio"] == 0.1
    assert got["train.seed"] == "7"
    assert of.given[-1].name == "train.seed"


@pytest.mark.parametrize(("given", "expected"), [({}, 0.25), ({"router_aux_loss_coef": 0.5}, 0.5)])
def test_experts_of_a_recipe_are_balanced_as_there(tmp_path: Path, given: dict[str, Any], expected: float) -> None:
    Qwen3MoeConfig(router_aux_loss_coef=0.25).save_pretrained(tmp_path / "experts")
    of = recipe(tmp_path, {"model_name_or_path": str(tmp_path / "experts")} | given)
    assert values(of)["model.aux_loss_coef"] == expected
    assert "model.aux_loss_coef" in of.defaults or given


def test_what_is_trained_of_a_completions_messages_is_told() -> None:
    ((_, here),) = translated(completion_only_loss=True).rows
    assert here.startswith("data.targets completion (of a completion's messages what the assistant says")
    ((_, everything),) = translated(completion_only_loss=False).rows
    assert everything == "data.targets everything"


def test_a_recipe_goes_on_from_the_newest(tmp_path: Path) -> None:
    of = recipe(tmp_path, {"model_name_or_path": "m", "resume_from_checkpoint": True})
    assert of.problems == []
    assert values(of)["ckpt.load_enable"] is True


def test_what_accelerate_launch_says_is_heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    of = translated()
    assert (of.settings["ds.zero_stage"], of.settings["ds.adam_offload"], of.problems) == (3, True, [])
    assert of.rows == [("(accelerate launch)", "ds.zero_stage 3, ds.adam_offload true")]
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu")
    (offload,) = translated().problems
    assert "offload_param is not here" in offload
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
    assert translated().settings["ds.zero_stage"] == 1


OTHER_VALUES = {bool: True, int: 7, float: 0.5, str: "other", list[str]: ["other"], dict[str, Any]: {"other": 7}}


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_given_name_is_in_the_table_or_refused(name: str) -> None:
    """Whatever is given beside the defaults."""
    default, kinds = RECIPE_NAMES[name].default, get_args(_KINDS[name]) or (_KINDS[name],)
    value = next((one for kind, one in OTHER_VALUES.items() if kind in (*kinds, _KINDS[name])), "other")
    value = not default if isinstance(value, bool) else value
    of = translated(**{name: value})
    assert any(name in there for there, _ in of.rows) or any(name in problem for problem in of.problems)


def test_all_trackers_are_told_to_be_none() -> None:
    ((there, here),) = translated(report_to="all").rows
    assert there == "report_to all"
    assert here.startswith("no tracker is found out")


def test_none_stays_a_value_after_transformers_has_parsed_the_names() -> None:
    """Its parser takes None off the types of a dataclass's fields, for the whole process."""
    HfArgumentParser(SftNames)
    assert translated(max_length=None, warmup_ratio=None).problems == []


def test_groups_in_groups_of_a_recipe_come_together(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    of = recipe(tmp_path, {"model_name_or_path": "m", "deepspeed": {"zero_optimization": zero}})
    assert of.problems == []
    assert (values(of)["ds.zero_stage"], values(of)["ds.adam_offload"]) == (3, True)


def test_a_recipe_asks_for_muon_and_a_flag_for_its_rate(good_flags) -> None:  # noqa: F811
    Path("recipe.yaml").write_text("model_name_or_path: ./model\ndataset_name: ./rows.jsonl\noptim: muon\n")
    config = parse_config(SFTConfig, ["@", "recipe.yaml", "--muon.lr", "0.01"])
    assert (config.optim, config.muon.lr, config.adam.lr) == ("muon", 0.01, 2e-5)


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [
        ("auto_find_batch_size", True, "--train.max_tokens_per_micro_batch 4096"),
        ("loss_type", "mine", "--train.loss tests.compat.recipe_script:Mine"),
    ],
)
def test_the_flag_that_a_refusal_names_is_taken_with_the_recipe(
    good_flags,  # noqa: F811
    name: str,
    value: Any,
    flag: str,
) -> None:
    (problem,) = translated(**{name: value}).problems
    assert f"python -m openrlhf.cli.train_sft with the recipe takes {flag.split()[0]}" in problem
    Path("recipe.yaml").write_text("model_name_or_path: ./model\ndataset_name: ./rows.jsonl\n")
    train = parse_config(SFTConfig, ["@", "recipe.yaml", *flag.split()]).train
    assert flag.split()[1] in (str(train.max_tokens_per_micro_batch), train.loss)


def test_a_recipe_has_no_loss_of_a_completions_assistant_alone(tmp_path: Path) -> None:
    (problem,) = recipe(tmp_path, {"assistant_only_loss": True, "completion_only_loss": True}).problems
    assert "for rows of prompt and completion leave assistant_only_loss out" in problem
    of = recipe(tmp_path, {"assistant_only_loss": True})
    assert "in a recipe those of the prompt too" in of.translation.rows[0][1]


def test_ranks_that_share_a_sample_count_once(tmp_path: Path) -> None:
    content = {"per_device_train_batch_size": 2, "ds": {"ring_attn_size": 2, "packing_samples": True}}
    assert values(recipe(tmp_path, content, num_ranks=4))["train.batch_size"] == 4


def test_an_unknown_name_of_a_recipe_is_refused_by_name(tmp_path: Path) -> None:
    of = recipe(tmp_path, {"model_name_or_path": "m", "warmup_ration": 0.1})
    assert of.problems == [
        f"{tmp_path / 'recipe.yaml'}: warmup_ration is unknown, here and in TRL, Open-R1 and verifiers. "
        "Did you mean warmup_ratio?"
    ]


def test_variables_of_the_environment_in_a_recipe_are_to_be_exported(tmp_path: Path) -> None:
    of = recipe(tmp_path, {"model_name_or_path": "m", "env": {"HF_TOKEN": "hf_abcdef"}})
    assert of.problems == [
        f"{tmp_path / 'recipe.yaml'}: env.HF_TOKEN is a variable of the environment: export it before the command, and "
        "leave env out."
    ]


def test_a_wrong_value_is_named_with_its_file(tmp_path: Path) -> None:
    (problem,) = recipe(tmp_path, {"per_device_train_batch_size": "many"}).problems
    assert problem.startswith(f"{tmp_path / 'recipe.yaml'}: per_device_train_batch_size is 'many'")


def test_one_name_stands_for_a_list_of_them(tmp_path: Path) -> None:
    of = recipe(tmp_path, {"model_name_or_path": "m", "use_peft": True, "lora_target_modules": "all-linear"})
    assert values(of)["ds.lora.target_modules"] == ["all-linear"]


def test_verifiers_toml_has_verifiers_meanings_and_defaults(tmp_path: Path) -> None:
    of = recipe(
        tmp_path, 'model = "m"\ndataset = "d.jsonl"\n[sft]\nbatch_size = 32\nmicro_batch_size = 4\nmax_seq_len = 99\n'
    )
    got = values(of)
    assert of.problems == []
    assert got["model.model_name_or_path"] == "m"
    assert got["data.dataset"] == "d.jsonl"
    assert (got["train.batch_size"], got["train.micro_batch_size"], got["data.max_len"]) == (32, 4, 99)
    assert (got["ds.lora.rank"], got["lr_scheduler"], got["train.max_steps"]) == (8, "constant", 500)


def test_a_file_of_ours_is_left_as_it_is(tmp_path: Path) -> None:
    of = recipe(tmp_path, {"train": {"batch_size": 4}, "learning_rate": 1e-3, "pretrain": "m"})
    assert of.translation is None
    assert [one.name for one in of.given] == ["learning_rate", "pretrain", "train.batch_size"]


def test_a_recipe_behind_at_is_told_name_by_name(good_flags, capsys, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("COLUMNS", "200")
    recipe = {"model_name_or_path": "./model", "dataset_name": "./rows.jsonl", "learning_rate": "2e-5"}
    recipe |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "dataloader_num_workers": 2}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = parse_config(SFTConfig, ["@", "recipe.yaml"])
    said = capsys.readouterr().err
    table = [[cell.strip() for cell in re.split(r"[│┃]", line)[1:-1]] for line in said.splitlines()]
    became = {cells[0]: cells[1] for cells in table if len(cells) == 2}
    assert "Names of TRL, and what became of them" in said
    assert (config.train.batch_size, config.adam.lr) == (8, 2e-5)
    assert became["learning_rate 2e-05"] == "adam.lr 2e-05"
    assert became["dataloader_num_workers 2"].startswith("changes nothing: ")
    both = "per_device_train_batch_size 2, gradient_accumulation_steps 4"
    assert became[both] == "train.batch_size 8, train.micro_batch_size 2 (2 × 4 × 1 ranks)"


def test_the_command_line_tells_the_table_and_the_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: m\nneftune_noise_alpha: 5\n")
    with pytest.raises(UserError, match="neftune_noise_alpha 5 cannot be had here"):
        parse_config(SFTConfig, ["@", str(path)])
    assert "what became of them" not in capsys.readouterr().err


def test_a_recipe_is_of_supervised_fine_tuning_alone(good_flags) -> None:  # noqa: F811
    Path("recipe.yaml").write_text("model_name_or_path: ./model\ndataset_name: ./rows.jsonl\nloss_type: nll\n")
    with pytest.raises(UserError, match="recipes are read for supervised fine-tuning alone"):
        parse_config(DPOConfig, ["@", "recipe.yaml"])
    assert nearest_root(INSPECTIONS, ["@", "recipe.yaml"]) is InspectConfig


def test_the_ranks_that_an_estimate_is_asked_for_make_the_batch(good_flags) -> None:  # noqa: F811
    Path("recipe.yaml").write_text("model_name_or_path: ./model\nper_device_train_batch_size: 2\n")
    config = parse_config(EstimateConfig, ["@", "recipe.yaml", "--ranks", "8"])
    assert config.train.batch_size == 16
