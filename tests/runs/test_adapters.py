"""Whole runs with every kind of adapter and with frozen weights: resumed to the bit, and merged at the end."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.helpers.workbench import flags, save_model, save_rows, step_lines
from tests.runs.cases import run, run_until_asked_to_leave, said_by_run
from tests.runs.test_resume import OF_THE_PROCESS, assert_same_tensors

LORA = dict(ds__lora__rank=4, ds__lora__dropout=0.1)
CASES = {  # pool, kind of model, settings
    "dora and head": ("one_rank", "llama", dict(LORA, ds__lora__use_dora=True, ds__lora__modules_to_save="lm_head")),
    "experts": (
        "one_rank",
        "mixtral",
        {
            "ds__lora__rank": 4,
            "ds__lora__target_modules": "q_proj",
            "ds__lora__target_parameters": "experts.down_proj",
        },
    ),
    "from an adapter": ("two_ranks", "llama", dict(ds__zero_stage=3, ds__packing_samples=True)),
    "frozen": ("two_ranks", "qwen3", dict(ds__zero_stage=3, model__trainable=r"layers\.1\.|lm_head")),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    save_rows(folder / "rows.jsonl", 16)
    for kind in ("llama", "qwen3", "mixtral"):
        save_model(folder / kind, kind)
    return folder


def argv(bench: Path, out: str, model: str, **changes) -> list[str]:
    return flags(bench / model, bench / "rows.jsonl", bench / out, train__max_epochs=2, **changes)


def first_adapter(bench: Path, one_rank) -> str:
    folder = bench / "first"
    if not folder.exists():
        one_rank.run(run, argv(bench, "first", "llama", train__max_steps=1, ds__lora__use_rslora=True, **LORA))
    return str(folder)


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(bench, request, one_rank, name):
    pool, kind, settings = CASES[name]
    ranks = request.getfixturevalue(pool)
    if name == "from an adapter":
        settings = settings | dict(ds__lora__adapter_name_or_path=first_adapter(bench, one_rank))
    whole, halves = f"{name}-whole".replace(" ", "_"), f"{name}-halves".replace(" ", "_")
    ranks.run(run, argv(bench, whole, kind, **settings))
    ranks.run(run_until_asked_to_leave, argv(bench, halves, kind, **settings), 3, 0)
    ranks.run(run, argv(bench, halves, kind, ckpt__load_enable=True, **settings))
    one, other = (
        [
            {name: value for name, value in line.items() if name not in OF_THE_PROCESS}
            for line in step_lines(bench / out)
        ]
        for out in (whole, halves)
    )
    assert len(one) == 8
    assert one == other
    file = "model.safetensors" if name == "frozen" else "adapter_model.safetensors"
    assert_same_tensors(bench / whole / file, bench / halves / file)


def test_a_run_goes_on_with_the_scale_that_its_first_adapter_had(bench, one_rank):
    """The adapter's weights are those of the checkpoint, its scale and dropout those of the folder."""
    adapter = bench / "replaced"
    shutil.copytree(first_adapter(bench, one_rank), adapter)
    words = argv(bench, "scaled", "llama", ds__lora__adapter_name_or_path=str(adapter), ckpt__load_enable=True)
    one_rank.run(run_until_asked_to_leave, words, 2, 0)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 64}))
    with pytest.raises(AssertionError, match=r"adapter_name_or_path \(lora_alpha\) differs: 16 .*, 64 now"):
        one_rank.run(run, words)


def test_frozen_weights_are_the_bases_and_another_base_is_refused(bench, two_ranks):
    settings = dict(ds__zero_stage=2, model__trainable=r"layers\.1\.")
    two_ranks.run(run_until_asked_to_leave, argv(bench, "part", "qwen3", **settings), 2, 0)
    if not (bench / "other").exists():
        save_model(bench / "other", seed=1)
    with pytest.raises(AssertionError, match="the model whose weights are not trained"):
        two_ranks.run(run, argv(bench, "part", "other", ckpt__load_enable=True, **settings))
    two_ranks.run(run, argv(bench, "part", "qwen3", ckpt__load_enable=True, **settings))
    base, trained = (AutoModelForCausalLM.from_pretrained(bench / name).state_dict() for name in ("qwen3", "part"))
    changed = {name for name in base if not torch.equal(base[name], trained[name])}
    assert changed == {name for name in base if ".layers.1." in name}


def test_the_merged_model_stands_beside_the_adapter_and_is_made_again(bench, one_rank):
    words = argv(bench, "merging", "qwen3", ckpt__merge_lora=True, ckpt__save_steps=4, **LORA)
    (said,) = one_rank.run(said_by_run, words)
    out = bench / "merging"
    assert f"the base with the adapter in it is in {out / 'merged'}." in said
    ids = torch.arange(3, 23)[None]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bench / "qwen3"), out).eval()
    expected = adapted(input_ids=ids).logits
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(out / "merged")(ids).logits, expected)
    shutil.rmtree(out / "merged")
    (said,) = one_rank.run(said_by_run, [*words, "--ckpt.load_enable"])
    assert "nothing is trained" in said
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(out / "merged")(ids).logits, expected)
    (said,) = one_rank.run(said_by_run, [*words, "--ckpt.load_enable"])
    assert "Nothing is done" in said


def test_a_merging_that_fails_loses_nothing_and_says_how_to_do_it_again(bench, one_rank):
    out = bench / "unmerged"
    (out).mkdir()
    (out / "merged").write_text("in the way")
    (said,) = one_rank.run(
        said_by_run, argv(bench, "unmerged", "llama", ckpt__merge_lora=True, train__max_steps=1, **LORA)
    )
    assert f"--lora_path {out} --output_path {out / 'merged'} --param_dtype fp32" in said
    assert (out / "adapter_model.safetensors").is_file()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install '.[qlora]'")
def test_four_bits_train_their_adapters_and_merge_into_the_whole_base(bench, one_rank):
    changes = dict(ds__load_in_4bit=True, ds__lora__rank=4, adam__lr=0.02, ds__zero_stage=2, ckpt__merge_lora=True)
    save_model(bench / "blocks", "llama", intermediate_size=128)  # on a CPU rows are whole blocks of 64 weights
    one_rank.run(run, argv(bench, "four-bits", "blocks", **changes))
    losses = [line["loss"] for line in step_lines(bench / "four-bits")]
    assert losses[-1] < 0.9 * losses[0]
    ids = torch.arange(3, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(bench / "blocks")
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, bench / "four-bits")(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(bench / "four-bits/merged")(ids).logits
    assert (adapted - before).abs().max() > 0.1, "nothing was trained"
    assert torch.allclose(merged, adapted, atol=1e-4)
