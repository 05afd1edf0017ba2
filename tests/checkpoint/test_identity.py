"""A checkpoint is recognised by settings and facts; each difference is refused or told in a sentence with its flag."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from openrlhf.checkpoint.checkpointer import FoundCheckpoint
from openrlhf.checkpoint.identity import (
    RunIdentity,
    check_same_run,
    compare,
    evaluates_otherwise,
    model_shape_fingerprint,
)
from openrlhf.checkpoint.manifest import write_manifest
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.training_state import LoadedState
from openrlhf.config import SFTConfig
from openrlhf.config.roots import ROOTS
from openrlhf.config.schema import build, settings
from openrlhf.errors import UserError
from openrlhf.strategy.checkpoints import load_found
from openrlhf.trainer.run_identity import base_model_fingerprint, function_of_config, settings_identity
from tests.datasets.conftest import pairs, prepare, write_jsonl  # noqa: F401
from tests.helpers.tiny_models import tiny_model

FACTS: dict[str, Any] = dict(
    data_fingerprint="d1", num_samples=100, model_shape="m1", tokenizer_fingerprint="t1", horizon_steps=300,
    base_model="b1",
)  # fmt: skip
SAME_SETTINGS = {"train.batch_size": 8, "adam.lr": 0.001}


def identity(**values: Any) -> RunIdentity:
    """Of SFTConfig with those settings, `__` standing for the dot, and the facts above."""
    given = SAME_SETTINGS | {name.replace("__", "."): value for name, value in values.items()}
    return replace(settings_identity(build(SFTConfig, given)), **FACTS)


def test_an_identity_comes_back_from_json_the_same() -> None:
    now = identity(adam__betas=(0.8, 0.9), ds__lora__rank=2, train__max_grad_norm_spike=None)
    assert RunIdentity.from_dict(json.loads(json.dumps(now.to_dict()))) == now
    assert check_same_run(now, now, "x") == []


@pytest.mark.parametrize(
    ("before", "now", "is_other"),
    [
        (dict(eval__dataset="a"), dict(eval__dataset="b"), True),
        (dict(eval__dataset="a"), dict(eval__dataset="a", eval__split="test"), True),
        (dict(eval__dataset="a"), dict(eval__dataset="a"), False),
        (dict(), dict(eval__dataset="b"), True),  # the best may be of rows before those
        (dict(eval__dataset="a"), dict(), False),  # it may come back
    ],
)
def test_losses_on_other_rows_are_not_compared(before: dict, now: dict, is_other: bool) -> None:
    assert evaluates_otherwise(identity(**before), identity(**now)) is is_other


@pytest.mark.parametrize("is_other", [False, True])
def test_the_rows_of_an_evaluation_are_known_by_their_content(is_other: bool, tmp_path: Path, prepare) -> None:  # noqa: F811
    """A job that is started again may find its file in another folder."""
    first, second = tmp_path / "first" / "rows.jsonl", tmp_path / "second" / "again.jsonl"
    before, now = (
        replace(
            identity(eval__dataset=str(write_jsonl(path, pairs(num_rows)))), eval_fingerprint=prepare(path).fingerprint
        )
        for path, num_rows in ((first, 3), (second, 4 if is_other else 3))
    )
    assert evaluates_otherwise(before, now) is is_other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(train__seed=43), "--train.seed differs: 42 in the checkpoint, 43 now"),
        (dict(train__batch_size=16), "--train.batch_size differs: 8"),
        (dict(train__loss="dft"), "--train.loss differs: nll"),
        (dict(train__loss_reduction="sample"), "--train.loss_reduction differs: token"),
        (dict(optim="muon"), "--optim differs: adam"),
        (dict(ds__param_dtype="fp32"), "--ds.param_dtype differs: bf16"),
        (dict(ds__lora__rank=4), "--ds.lora.rank differs: 0"),
        (dict(ds__load_in_4bit=True), "--ds.load_in_4bit differs: False"),
    ],
)
def test_a_setting_that_makes_it_another_run_is_refused(changes: dict, words: str) -> None:
    found = compare(identity(), identity(**changes))
    assert len(found.refused) == 1
    assert words in found.refused[0]


@pytest.mark.parametrize(
    ("fact", "value", "words"),
    [
        ("data_fingerprint", "d2", "the training data"),
        ("num_samples", 99, "the number of training samples"),
        ("model_shape", "m2", "model's parameters"),
        ("tokenizer_fingerprint", "t2", "the tokenizer"),
        ("horizon_steps", 299, "schedule.*--train.max_epochs, --train.max_steps"),
        ("base_model", "b2", "--model.model_name_or_path"),
    ],
)
def test_a_fact_that_makes_it_another_run_is_refused(fact: str, value: object, words: str) -> None:
    now = replace(identity(), **{fact: value})
    with pytest.raises(UserError, match=words) as raised:
        check_same_run(identity(), now, "here/global_step3")
    assert "--ckpt.allow_mismatch" in str(raised.value)
    assert "here/global_step3" in str(raised.value)


def test_all_differences_are_refused_at_once() -> None:
    now = replace(identity(train__seed=1, ds__param_dtype="fp32"), num_samples=99)
    assert len(compare(identity(), now).refused) == 3


def test_who_means_it_goes_on_and_is_told_each_difference() -> None:
    now = identity(train__seed=1, max_norm=2.0)
    seed, norm = check_same_run(identity(), now, "x", allow_mismatch=True)
    assert "--train.seed differs: 42 in the checkpoint, 1 now" in seed
    assert "--ckpt.allow_mismatch" in seed
    assert "--max_norm 2.0 is taken from here on" in norm


def test_a_kept_setting_is_told_to_be_ignored() -> None:
    (told,) = check_same_run(identity(), identity(adam__lr=1e-5), "x")
    assert "--adam.lr 1e-05 is ignored: the checkpoint's 0.001 stays" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(adam__betas=(0.8, 0.9)), "--adam.betas [0.8, 0.9] is taken from here on; the checkpoint was made with"),
        (dict(model__aux_loss_coef=0.1), "--model.aux_loss_coef 0.1 is taken"),
        (dict(train__max_grad_norm_spike=3.0), "--train.max_grad_norm_spike 3.0 is taken"),
        (dict(train__callbacks="a:B"), "--train.callbacks a:B is taken"),
        (dict(ds__grad_accum_dtype="fp32"), "--ds.grad_accum_dtype fp32 is taken"),
        (dict(eval__dataset="x.jsonl"), "--eval.dataset x.jsonl is taken"),
    ],
)
def test_a_setting_that_changes_the_training_from_here_on_is_told(changes: dict, words: str) -> None:
    (told,) = check_same_run(identity(), identity(**changes), "x")
    assert words in told


def test_layout_paths_and_logging_change_without_a_word() -> None:
    changes = dict(
        ds__zero_stage=3, ds__ring_attn_size=2, ds__packing_samples=True, train__micro_batch_size=1,
        train__max_tokens_per_micro_batch=4096, ckpt__path="elsewhere", logger__logging_steps=9,
    )  # fmt: skip
    assert check_same_run(identity(), identity(**changes), "x") == []


@pytest.mark.parametrize(
    "changes", [dict(muon__lr=1.0), dict(muon__momentum=0.5), dict(ds__lora__alpha=32), dict(eval__split="test")]
)
def test_a_setting_that_does_nothing_in_this_run_is_not_compared(changes: dict) -> None:
    assert check_same_run(identity(), identity(**changes), "x") == []


def test_settings_of_muon_and_of_adapters_are_compared_where_they_act() -> None:
    assert len(check_same_run(identity(optim="muon"), identity(optim="muon", muon__lr=1.0), "x")) == 1
    assert compare(identity(ds__lora__rank=2), identity(ds__lora__rank=2, ds__lora__alpha=32)).refused != []


def test_a_script_without_a_configuration_is_recognised_by_the_model_alone() -> None:
    script = RunIdentity(model_shape="m1")
    assert check_same_run(script, identity(), "x") == check_same_run(identity(), script, "x") == []
    assert len(compare(RunIdentity(model_shape="m2"), identity()).refused) == 1


def test_a_secret_is_in_no_identity() -> None:
    for root in ROOTS:
        secret = {row.name for row in settings(root).values() if row.secret}
        assert secret.isdisjoint(settings_identity(build(root, {})).settings)


def test_model_shape_sees_names_and_shapes_not_order() -> None:
    shapes = [("a", (2, 3)), ("b", (4,))]
    assert model_shape_fingerprint(shapes) == model_shape_fingerprint(shapes[::-1])
    assert model_shape_fingerprint(shapes) != model_shape_fingerprint([("a", (3, 2)), ("b", (4,))])


def test_other_weights_under_adapters_have_another_fingerprint(tmp_path: Path) -> None:
    for name, content in (("one", b"a" * 999), ("same", b"a" * 999), ("other", b"a" * 998 + b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    one, same, other = (base_model_fingerprint(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other
    assert base_model_fingerprint("org/name") == "org/name"
    (unreadable := tmp_path / "unreadable" / "model.safetensors").mkdir(
        parents=True
    )  # root may read whatever is a file
    with pytest.raises(UserError, match=f"{unreadable} cannot be read: Is a directory"):
        base_model_fingerprint(str(unreadable.parent))


def test_a_config_is_known_by_the_function_that_it_names_whoever_wrote_it(tmp_path: Path) -> None:
    config = tiny_model("qwen3").config
    first = function_of_config("x", config)
    assert json.loads(json.dumps(first)) == first
    config.use_cache, config.dtype, config.pad_token_id, config.architectures = True, "bfloat16", 5, ["Other"]
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert function_of_config("x", read) == first
    read.rope_parameters = {"rope_type": "default", "rope_theta": 3.0}
    assert [key for key, value in function_of_config("x", read).items() if first[key] != value] == [
        "x (config.json: rope_parameters)"
    ]


def test_a_run_with_another_optimizer_is_told_that_it_begins_anew(tmp_path: Path) -> None:
    write_manifest(tmp_path, identity=identity(optim="adam").to_dict())
    said: list[str] = []
    loads: list[bool] = []

    def load(engine: Any, found: FoundCheckpoint, scheduler: Any, is_same_optimizer: bool) -> LoadedState:
        loads.append(is_same_optimizer)
        return LoadedState(found.path, found.progress, {}, True)

    checkpointer: Any = SimpleNamespace(load=load)
    trained: Any = SimpleNamespace(engine=None, scheduler=None)
    found = FoundCheckpoint(tmp_path, TrainingProgress())
    for optim in ("adam", "muon"):
        load_found(checkpointer, trained, found, identity(optim=optim), True, said.append)
    assert loads == [True, False]
    assert said[-1].startswith("the optimizer begins anew")
