"""A base model that is not what its config.json says is refused, and the weights are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.loading import load_config
from tests.helpers.tiny_models import tiny_model

Q = "model.layers.0.self_attn.q_proj.weight"
KINDS = ("llama", "qwen3", "mixtral", "gpt2", "gpt_oss", "opt", "cohere", "phimoe", "gemma2", "qwen3_moe", "granite")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Actor(str(folder), param_dtype="fp32")
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(Q), f"lacks weights of the model: {Q}"),
        (lambda w: w.update(more=torch.zeros(2)), "holds weights that the model has not: more"),
        (lambda w: w.update({Q: torch.zeros(3, 64)}), f"another shape: {Q} (3, 64) instead of (64, 64)"),
        (lambda w: w[Q][1].fill_(float("nan")), f"not finite: {Q}"),
        (lambda w: w[Q][1].fill_(float("inf")), f"not finite: {Q}"),
    ],
    ids=("missing", "extra", "shape", "nan", "inf"),
)
def test_a_wrong_weight_is_named(folder, change, words):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a pointer of Git LFS"),
        (b"", "is no safetensors file, or is cut short"),
        (b"\x05", "is no safetensors file, or is cut short"),
        ((2**62).to_bytes(8, "little") + b"{}", "is no safetensors file, or is cut short"),
        ((4).to_bytes(8, "little") + b"{{{{", "has a damaged header"),
    ],
)
def test_a_file_that_is_none_is_named(folder, content, words):
    (folder / "model.safetensors").write_bytes(content)
    assert f"model.safetensors {words}" in refusal(folder)


def test_a_file_that_was_cut_is_named_with_its_sizes(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "bytes instead of" in refusal(folder)


def test_a_missing_shard_is_named(folder):
    shutil.rmtree(folder)
    tiny_model("llama").save_pretrained(folder, max_shard_size="100KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert lost.name in refusal(folder)


@pytest.mark.parametrize(
    "change", [{"hidden_size": "64"}, {"vocab_size": [1]}, {"num_attention_heads": 0}, {"hidden_act": 5}]
)
def test_a_wrong_type_in_the_configuration_is_words(folder, change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    said = refusal(folder)
    assert "No model could be loaded from" in said
    assert ". Give the folder" in said


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a":' * 5000, '{"vocab_size": ' + "9" * 5000 + "}"])
def test_a_damaged_configuration_is_words(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match="No model could be loaded"):
        load_config(str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_right_is_loaded(kind, tmp_path):
    tiny_model(kind).save_pretrained(tmp_path)
    assert sum(one.numel() for one in Actor(str(tmp_path), param_dtype="fp32").parameters())
