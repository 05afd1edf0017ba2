"""Which attention is chosen, and which models are refused in packs."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM

from openrlhf.engine import model_internals
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.attention import causal_pack
from openrlhf.models.attention.calls import ModelFacts, attention_calls
from openrlhf.models.attention.choice import AttentionChoice, CannotPack, choose_attention
from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.models.attention.per_sample import causal_mask_unwritten, per_sample_attention
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import LENGTHS, make_samples
from tests.zoo.shrink import small_config, small_model, small_model_named


def facts(kind="llama", dtype=torch.bfloat16):
    model = tiny_model(kind)
    return ModelFacts(type(model), model.config, dtype)


@pytest.mark.parametrize(
    ("packed", "ring_size", "expected"), [(False, 1, None), (True, 1, "per_sample"), (True, 2, "ring")]
)
def test_auto_on_a_cpu(packed, ring_size, expected):
    assert choose_attention("auto", "cpu", packed, ring_size, facts()) == AttentionChoice(expected)


@pytest.mark.parametrize("name", ["eager", "sdpa", "per_sample", "ring"])
def test_a_name_is_taken_at_its_word(name):
    assert choose_attention(name, "cpu", True, 1, facts()) == AttentionChoice(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("torch_varlen", "cpu", True, 1), "CUDA only, not on cpu. Use per_sample"),
        (("flash", "cpu", True, 1), "Known: auto"),
        (("sdpa", "cpu", True, 2), "ring_attn_size"),
        (("ring_flash_attn", "cuda", True, 2), "flash_attn, ring_flash_attn.: pip install flash-attn ring-flash-attn"),
        (("ring_flash_attn", "cuda", True, 1), "add --ds.ring_attn_size"),
        (("auto", "cpu", False, 2), "--ds.packing_samples"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(arguments, message):
    with pytest.raises(UserError, match=message):
        choose_attention(*arguments, facts())


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "llama"])
def test_sdpa_is_refused_in_words_where_transformers_has_none(monkeypatch, kind):
    if kind == "llama":  # others lack it without soft caps or sinks
        monkeypatch.setattr(type(tiny_model(kind)), "_supports_sdpa", False)
    with pytest.raises(UserError, match=r"sdpa: \w+ForCausalLM does not compute by torch's .* Use eager. Or use auto."):
        Actor(tiny_model(kind), "sdpa")


@pytest.mark.parametrize(
    ("kind", "by_sdpa", "version", "expected"),
    [("gemma2", True, "5.19.0", "eager"), ("gemma2", False, "5.23.0", None), ("llama", True, "5.19.0", None)],
)
def test_soft_caps_are_not_left_to_an_sdpa_that_leaves_them_out(monkeypatch, kind, by_sdpa, version, expected):
    model = tiny_model(kind)
    monkeypatch.setattr(type(model), "_supports_sdpa", by_sdpa)
    monkeypatch.setattr(model_internals, "version", {"transformers": version}.get)
    choice = choose_attention("auto", "cpu", False, 1, ModelFacts(type(model), model.config, torch.float32))
    assert choice.name == expected
    assert ("soft caps" in choice.note) == (expected == "eager")


def test_a_model_with_an_attention_of_its_own_takes_no_other():
    config = AutoConfig.for_model("bloom", vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    with pytest.raises(UserError, match="BloomForCausalLM computes its attention itself"):
        Actor(AutoModelForCausalLM.from_config(config), "per_sample")


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma4", "mistral_window", "mixtral", "gpt_oss", "phimoe"])
def test_what_a_model_asks_of_its_attention_is_seen_without_weights(kind):
    """Held against the shapes and options that reach attention when the model itself runs."""
    model = tiny_model(kind).train()
    seen = set()

    def note(module, query, key, value, mask, **kwargs):
        options = AttentionOptions.taken_from(kwargs)
        windows, sizes = (mask.window, options.window), (query.shape[-1], value.shape[-1])
        seen.add((*sizes, *windows, options.softcap is not None, options.sinks is not None))
        return per_sample_attention(module, query, key, value, mask, **vars(options))

    AttentionInterface.register("noted", note)
    AttentionMaskInterface.register("noted", causal_mask_unwritten)
    model.set_attn_implementation("noted")
    model(torch.arange(4)[None], use_cache=False)
    found = {
        (c.head_size, c.value_size, c.mask_window, c.told_window, c.has_softcap, c.has_sinks)
        for c in attention_calls(ModelFacts(type(model), model.config, torch.float32))
    }
    assert found == seen


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
    actor = Actor(tiny_model("llama", dtype=torch.float64), packing_samples=True)
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


@pytest.mark.parametrize("packed", [True, False])
def test_an_encoder_is_refused_in_every_layout(packed):
    """By no CannotPack, after which a run would be padded."""
    config = AutoConfig.for_model("bert", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(UserError, match="BertLMHeadModel cannot be trained .* see its own target") as raised:
        Actor(AutoModelForCausalLM.from_config(config), packing_samples=packed)
    assert not isinstance(raised.value, CannotPack)


@pytest.mark.parametrize("packed", [True, False])
def test_bidirectional_attention_is_refused_before_weights_are_read(tmp_path, packed):
    sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16)
    AutoConfig.for_model("gemma3_text", use_bidirectional_attention=True, **sizes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its attention is not causal, so each token would") as raised:
        Actor(str(tmp_path), packing_samples=packed)
    assert not isinstance(raised.value, CannotPack)


def test_an_encoder_that_takes_no_other_attention_is_refused_by_what_it_computes():
    config = small_config("roformer", is_decoder=False)
    with pytest.raises(UserError, match="RoFormerForCausalLM cannot be trained .* see its own target"):
        Actor(small_model(config))


@pytest.mark.parametrize("name", ["bart", "bigbird_pegasus", "git", "bert", "roformer"])
def test_decoders_that_could_attend_to_something_else_are_taken(name):
    Actor(small_model_named(name))
