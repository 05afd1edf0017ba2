"""Which attention is chosen, and which models are refused in packs."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.attention import causal_pack, choice
from openrlhf.models.attention.choice import choose_attention
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import LENGTHS, make_samples


def pretend_installed(monkeypatch, *modules):
    monkeypatch.setattr(choice, "_is_installed", lambda module: module in modules)


@pytest.mark.parametrize(
    ("installed", "device", "packed", "ring_size", "expected"),
    [
        ((), "cpu", False, 1, None),
        ((), "cpu", True, 1, "per_sample"),
        (("flash_attn",), "cpu", True, 1, "per_sample"),
        ((), "cuda", True, 1, "torch_varlen"),
        (("flash_attn",), "cuda", True, 1, "flash_attention_2"),
        (("flash_attn", "flash_attn_interface"), "cuda", True, 1, "flash_attention_3"),
        (("flash_attn",), "cuda", True, 2, "ring"),
    ],
)
def test_auto(monkeypatch, installed, device, packed, ring_size, expected):
    pretend_installed(monkeypatch, *installed)
    assert choose_attention("auto", device, packed, ring_size) == expected


@pytest.mark.parametrize("name", ["eager", "sdpa", "per_sample", "ring"])
def test_a_name_is_taken_at_its_word(name):
    assert choose_attention(name, "cpu", True, 1) == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flash_attention_2", "cuda", True, 1), "pip install flash-attn"),
        (("flash_attention_3", "cuda", True, 1), "pip install"),
        (("kernels-community/flash-attn2", "cuda", True, 1), "pip install kernels"),
        (("torch_varlen", "cpu", True, 1), "CUDA only"),
        (("flash", "cpu", True, 1), "Known: auto"),
        (("sdpa", "cpu", True, 2), "ring_attn_size"),
        (("ring_flash_attn", "cuda", True, 2), "flash_attn, ring_flash_attn.: pip install flash-attn ring-flash-attn"),
        (("ring_flash_attn", "cuda", True, 1), "add --ds.ring_attn_size"),
        (("auto", "cpu", False, 2), "--ds.packing_samples"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(monkeypatch, arguments, message):
    pretend_installed(monkeypatch)
    with pytest.raises(UserError, match=message):
        choose_attention(*arguments)


def test_flash_attention_on_a_cpu_is_refused(monkeypatch):
    pretend_installed(monkeypatch, "flash_attn")
    with pytest.raises(UserError, match="CUDA only"):
        choose_attention("flash_attention_2", "cpu", True, 1)


UNPACKABLE = {
    "mamba": (dict(model_type="mamba", state_size=4), "linear_attention"),
    "jamba": (dict(model_type="jamba", num_attention_heads=4, num_key_value_heads=2), "linear_attention|state"),
    "qwen3_next": (dict(model_type="qwen3_next", head_dim=16, num_hidden_layers=4), "linear_attention"),
    "bloom": (dict(model_type="bloom", n_head=4), "cannot be replaced"),
}


@pytest.mark.parametrize(("settings", "message"), UNPACKABLE.values(), ids=UNPACKABLE.keys())
def test_models_that_would_leak_are_refused_before_their_weights_are_read(tmp_path, settings, message):
    sizes = dict(vocab_size=64, hidden_size=64, num_hidden_layers=2)
    AutoConfig.for_model(**{**sizes, **settings}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        Actor(str(tmp_path), packing_samples=True)


def test_a_model_in_memory_that_would_leak_is_refused():
    config = AutoConfig.for_model("mamba", vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(UserError, match="linear_attention"):
        Actor(AutoModelForCausalLM.from_config(config), packing_samples=True)


def test_bidirectional_attention_is_refused():
    model = tiny_model("llama")
    model.config.is_causal = False
    with pytest.raises(UserError, match="not causal"):
        Actor(model, packing_samples=True)


def test_per_sample_attention_never_makes_a_mask_of_the_whole_pack(monkeypatch):
    seen = []
    actor = Actor(tiny_model("llama"), packing_samples=True)
    original = causal_pack._repeated
    monkeypatch.setattr(
        causal_pack, "_repeated", lambda query, *args: seen.append(query.shape[1]) or original(query, *args)
    )
    actor.score_targets(**make_samples().packed())
    assert seen == [*LENGTHS, *LENGTHS]


def test_a_model_that_loses_the_borders_on_the_way_is_refused():
    sizes = dict(vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    config = AutoConfig.for_model("nemotron", num_attention_heads=4, num_key_value_heads=4, **sizes)
    with pytest.raises(UserError, match="does not hand them on"):
        Actor(AutoModelForCausalLM.from_config(config), packing_samples=True)


def test_an_encoder_is_refused():
    config = AutoConfig.for_model("bert", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(UserError, match="not causal"):
        Actor(AutoModelForCausalLM.from_config(config), packing_samples=True)
