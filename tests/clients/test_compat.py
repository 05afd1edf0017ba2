"""Flags that mean another thing in OpenRLHF: told in one table, or taken as there."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from openrlhf.config import SFTConfig, from_namespace, parse_config
from openrlhf.config.schema import build
from openrlhf.datasets import RewardDataset, SFTDataset
from openrlhf.datasets.utils import blending_datasets
from openrlhf.engine.optimizers import decay_groups
from openrlhf.errors import UserError
from openrlhf.tracking.sinks import openrlhf_charts
from openrlhf.trainer.callbacks.callback import Wishes
from openrlhf.trainer.evaluation import Evaluating
from tests.config.conftest import good_flags  # noqa: F401
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import tiny_tokenizer

FLAT = ["--pretrain", "./model", "--dataset", "./rows.jsonl"]
ROWS = "./rows.jsonl"


def test_flat_names_are_told_of_what_differs(good_flags, capsys):  # noqa: F811
    config = parse_config(SFTConfig, [*FLAT, "--eval_dataset", ROWS, "--l2", "0.1"])
    told = capsys.readouterr().err
    assert (config.data.input_template, config.data.overlong, config.eval.every_epoch) == (None, "drop", False)
    assert "--data.input_template: there 'User: {}\\nAssistant: ' where it is left out; here none" in told
    assert "--data.max_len: there longer rows are cut; here longer rows are left out" in told
    assert "--eval.steps: there -1 evaluates after every epoch" in told
    assert "--adam.weight_decay: there embeddings decay too" in told
    assert "dataset_probs" not in told, "what does not matter to this run is not told"


def test_dotted_names_are_ours_and_told_nothing(good_flags, capsys):  # noqa: F811
    parse_config(SFTConfig, [*good_flags, "--adam.weight_decay", "0.1"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("version", ["openrlhf-0.9", "openrlhf-0.11"])
def test_compat_takes_their_meaning(good_flags, capsys, version):  # noqa: F811
    more = f"--compat {version} --data.dataset_probs 1 --adam.weight_decay 0.1 --logger.tensorboard_dir tb".split()
    config = parse_config(SFTConfig, [*good_flags, *more, "--eval.dataset", ROWS])
    assert config.data.input_template == "User: {}\nAssistant: "
    assert (config.data.overlong, config.data.stopping_strategy) == ("truncate", "all_exhausted")
    assert (config.eval.every_epoch, config.adam.decay_embeddings, config.logger.openrlhf_names) == (True,) * 3
    assert f"--compat {version}: taken as there" in capsys.readouterr().err


def test_what_the_user_gives_wins_over_compat(good_flags):  # noqa: F811
    more = ["--compat", "openrlhf-0.9", "--data.input_template", "none", "--data.overlong", "error"]
    data = parse_config(SFTConfig, [*good_flags, *more]).data
    assert (data.input_template, data.overlong) == (None, "error")


def test_compat_of_pretraining_and_of_a_key(good_flags):  # noqa: F811
    more = ["--compat", "openrlhf-0.11", "--model.pretrain_mode_enable", "--logger.wandb.key", "123"]
    config = parse_config(SFTConfig, [*good_flags, *more])
    assert (config.data.pretrain_end_token, config.logger.wandb.enable) == (False, True)


def test_a_script_may_ask_for_compat():
    config = from_namespace(SFTConfig, SimpleNamespace(compat="openrlhf-0.9", pretrain="m"))
    assert config.data.overlong == "truncate"


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("--micro_train_batch 3", 3),
        ("--micro 3", 3),
        ("--compat openrlhf-0.11 --train.micro 3", 3),
    ],
)
def test_their_abbreviations_are_read(good_flags, words, setting):  # noqa: F811
    assert parse_config(SFTConfig, [*FLAT, *words.split()]).train.micro_batch_size == setting


@pytest.mark.parametrize("words", ["--lora 3", "--train.micro 3"])
def test_an_abbreviation_of_several_or_of_ours_is_refused(good_flags, words):  # noqa: F811
    flags = FLAT if words == "--lora 3" else good_flags
    with pytest.raises(UserError, match="is unknown"):
        parse_config(SFTConfig, [*flags, *words.split()])


def test_flags_that_need_nothing_here_are_told(good_flags, capsys):  # noqa: F811
    words = [
        "--disable_fast_tokenizer",
        "--data.dataloader_num_workers",
        "4",
        "--ring_attn_head_stride",
        "2",
        "--save_hf_ckpt",
    ]
    config = parse_config(SFTConfig, [*FLAT, *words])
    told = capsys.readouterr().err
    assert "--disable_fast_tokenizer changes nothing here: rows are read by the fast tokenizer" in told
    assert "--data.dataloader_num_workers changes nothing here: batches are made in a thread" in told
    assert "--ckpt.save_hf: there without --ckpt.save_steps it does nothing" in told
    assert (config.ds.ring_head_stride, config.ckpt.save_hf) == (2, False)


def test_muon_has_no_other_steps(good_flags):  # noqa: F811
    with pytest.raises(UserError, match="DeepSpeed's Muon takes 5 steps"):
        parse_config(SFTConfig, [*good_flags, "--optim", "muon", "--muon.ns_steps", "6"])
    parse_config(SFTConfig, [*good_flags, "--optim", "muon", "--muon.ns_steps", "5", "--muon.nesterov", "true"])


def test_embeddings_decay_on_request():
    decayed, rest = decay_groups(tiny_model("gpt2"), 0.1, decay_embeddings=True)
    assert all(parameter.ndim == 1 for parameter in rest["params"])
    assert all(parameter.ndim == 2 for parameter in decayed["params"])


def test_evaluations_after_every_epoch():
    seen = []
    trainer = SimpleNamespace(windows=SimpleNamespace(steps_per_epoch=3), eval_dataloader="rows", wishes=Wishes())
    trainer.evaluate = lambda rows, step: seen.append(step)
    for step in range(1, 8):
        trainer.progress = SimpleNamespace(optimizer_step=step)
        Evaluating(-1, every_epoch=True).on_step_end(trainer, {})
    assert seen == [3, 6]


def test_names_of_charts():
    assert openrlhf_charts("train", {"global_step": 3, "loss": 2.0, "lr": 0.1}) == {
        "train/global_step": 3,
        "train/gpt_loss": 2.0,
        "train/lr": 0.1,
        "train/loss_mean": 2.0,
    }
    assert openrlhf_charts("eval", {"global_step": 3, "eval_loss": 2.0}) == {
        "eval/global_step": 3,
        "eval/eval gpt_loss": 2.0,
    }


def test_rows_repeat_until_every_source_is_used_up(tmp_path):
    from openrlhf.datasets.sft_dataset import prepare_sft_dataset

    for name, count in (("a", 2), ("b", 9)):
        rows = [{"prompt": f"{name}{number}", "completion": "yes"} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    rows = blending_datasets(names, "0.5,0.5", stopping_strategy="all_exhausted", cache_dir=tmp_path / "cache")
    counts = Counter(row["prompt"] for row in rows)
    assert [counts[f"b{number}"] for number in range(9)] == [1] * 9
    assert sorted((counts["a0"], counts["a1"])) == [4, 5]
    assert len(blending_datasets(names, "0.5,0.5", cache_dir=tmp_path / "cache")) == 4
    settings = {"data.dataset": names, "data.dataset_probs": "0.5,0.5", "data.cache_dir": str(tmp_path / "cache")}
    data = build(SFTConfig, settings | {"data.stopping_strategy": "all_exhausted", "data.num_processors": 1}).data
    assert len(prepare_sft_dataset(data, tiny_tokenizer())) == 18


def test_a_script_under_compat_repeats_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENRLHF_CACHE", str(tmp_path / "cache"))
    for name, count in (("a", 2), ("b", 9)):
        rows = [{"prompt": f"{name}{number}", "completion": "yes"} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def num_rows(args, **more):
        strategy = SimpleNamespace(args=args, print=print)
        return len(blending_datasets(f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl", "0.5,0.5", strategy, **more))

    theirs = SimpleNamespace(compat="openrlhf-0.9")
    ours = {"compat": "openrlhf-0.11", "data": {"stopping_strategy": "first_exhausted"}}
    assert [num_rows(theirs), num_rows(ours), num_rows(SimpleNamespace(compat=None))] == [18, 4, 4]
    assert num_rows(theirs, stopping_strategy="first_exhausted") == 4, "what a script gives itself wins"


@pytest.mark.parametrize(
    ("args", "given", "text"),
    [
        ({"compat": "openrlhf-0.9"}, None, "User: Tea?\nAssistant:  Yes."),
        ({"compat": "openrlhf-0.9"}, "Q: {} A:", "Q: Tea? A: Yes."),
        ({}, None, "Tea? Yes."),
    ],
)
def test_a_script_under_compat_has_their_template(tmp_path, monkeypatch, args, given, text):
    monkeypatch.setenv("OPENRLHF_CACHE", str(tmp_path))
    tokenizer, strategy = tiny_tokenizer(), SimpleNamespace(args=SimpleNamespace(**args))
    rows = [{"prompt": "Tea?", "completion": " Yes."}]
    ids = SFTDataset(rows, tokenizer, 64, strategy, input_template=given, num_processors=1)[0][0]
    assert tokenizer.decode(ids) == text + tokenizer.eos_token


def test_a_script_under_compat_cuts_long_pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENRLHF_CACHE", str(tmp_path))
    rows = [{"prompt": "Tea?", "chosen": " Yes." * n, "rejected": " No."} for n in (1, 50)]

    def longest(**args):
        strategy = SimpleNamespace(args=SimpleNamespace(**args))
        return RewardDataset(rows, tiny_tokenizer(), 32, strategy, num_processors=1).num_tokens.tolist()

    assert longest(compat="openrlhf-0.11")[1:] == [32]
    assert len(longest()) == 1


def test_a_text_of_pretraining_without_an_end_token(tmp_path):
    from openrlhf.datasets.sft_dataset import prepare_sft_dataset

    (tmp_path / "rows.jsonl").write_text('{"text": "Can I get a coffee?"}\n')
    settings = {"data.dataset": f"{tmp_path}/rows.jsonl", "data.cache_dir": str(tmp_path / "cache")}
    tokenizer = tiny_tokenizer()
    ids = [
        prepare_sft_dataset(
            build(SFTConfig, settings | {"data.pretrain_end_token": ends, "data.num_processors": 1}).data,
            tokenizer,
            pretrain_mode=True,
        )[0][0].tolist()
        for ends in (True, False)
    ]
    assert ids[0] == [*ids[1], tokenizer.eos_token_id]
