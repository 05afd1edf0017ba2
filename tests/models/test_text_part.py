"""Composites of which the text part alone is trained: loaded, exported, and told of."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from openrlhf.checkpoint.export import export_model
from openrlhf.checkpoint.model_settings import save_settings
from openrlhf.engine.model_internals import without_weights
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.loading import facts_of
from tests.models.batches import make_samples

_TEXT = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)
_VISION = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
_PROJECTOR = dict(vision_output_dim=64, projector_input_dim=64, projector_output_dim=64, intermediate_size=128)
COMPOSITES = {
    "llama4": dict(
        text_config=dict(_TEXT, intermediate_size_mlp=96, num_local_experts=2, num_experts_per_tok=1),
        vision_config=dict(_VISION, **_PROJECTOR),
    ),
    "qwen3_5": dict(
        text_config=dict(_TEXT, layer_types=["full_attention", "linear_attention"]),
        vision_config=dict(depth=1, hidden_size=32, num_heads=2, out_hidden_size=64, num_position_embeddings=16),
    ),
}


@pytest.fixture(params=[name for name in COMPOSITES if name in CONFIG_MAPPING])
def composite(request, tmp_path):
    """The folder of a model that sees."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[request.param](**COMPOSITES[request.param])
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "seeing")
    return tmp_path / "seeing"


def test_the_text_part_is_loaded_and_told_of(composite, caplog):
    actor = Actor(str(composite), param_dtype="fp32")
    assert f"{composite} is a" in caplog.text
    assert "it alone is trained and exported" in caplog.text
    sequences, mask = make_samples().padded()
    text = AutoModelForCausalLM.from_pretrained(composite, dtype=torch.float32)
    logits = text(input_ids=sequences[:1], attention_mask=mask[:1]).logits.log_softmax(-1)
    expected = logits[:, :-1].gather(-1, sequences[:1, 1:, None])[..., 0] * mask[:1, 1:]
    assert torch.allclose(actor(sequences[:1], mask[:1]), expected, atol=1e-5)


def test_it_is_known_before_it_is_read(composite):
    """Else neither its memory nor its attention could be told."""
    facts = facts_of(str(composite), "fp32")
    text = AutoModelForCausalLM.from_pretrained(composite)
    found = without_weights(facts.model_class, facts.config, "eager").state_dict()
    expected = text.state_dict()
    assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in expected.items()}


def test_the_export_is_a_model_of_text(composite, tmp_path):
    actor = Actor(str(composite), param_dtype="fp32")
    export_model(actor.model, None, tmp_path / "out")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    for (name, found), expected in zip(again.named_parameters(), actor.model.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_composite_that_is_exported_whole_keeps_its_processor(tmp_path):
    text = dict(_TEXT, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    config = CONFIG_MAPPING["gemma3"](text_config=text, vision_config=_VISION, mm_tokens_per_image=4)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "seeing")
    names = ("processor_config.json", "preprocessor_config.json")
    for name in names:
        (tmp_path / "seeing" / name).write_text(f'{{"of": "{name}"}}')
    actor = Actor(str(tmp_path / "seeing"), param_dtype="fp32")
    (tmp_path / "out").mkdir()
    save_settings(actor.model, None, tmp_path / "out")
    for name in names:
        assert (tmp_path / "out" / name).read_text() == f'{{"of": "{name}"}}'
    assert not (tmp_path / "out" / "video_preprocessor_config.json").exists()


def test_more_weights_of_the_text_part_are_still_refused(composite):
    weights = load_file(composite / "model.safetensors")
    name = next(name for name in weights if ".layers.1." in name and "language_model" in name)
    more = name.replace(".layers.1.", ".layers.7.")
    save_file({**weights, more: weights[name].clone()}, composite / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"holds weights that the model has not: .*layers\.7\."):
        Actor(str(composite))
