"""What a model cannot do is told before its data are prepared."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from openrlhf.config import SFTConfig, parse_config
from openrlhf.errors import UserError
from openrlhf.models.loading import facts_of
from openrlhf.run.builders import check_layout, read_facts
from tests.helpers.workbench import flags

GPT2 = dict(model_type="gpt2", vocab_size=64, n_embd=32, n_layer=1, n_head=2)
CASES = {
    "packs that leak": (
        dict(model_type="mamba", vocab_size=64, hidden_size=32, num_hidden_layers=1),
        dict(ds__packing_samples=True),
        "MambaForCausalLM cannot be trained on packed samples",
    ),
    "a type that crashes under ZeRO-3": (
        dict(model_type="jetmoe", vocab_size=64, hidden_size=32, num_hidden_layers=1),
        dict(ds__zero_stage=3),
        r"--ds\.zero_stage 3: jetmoe needs weights",
    ),
    "layers that are not recomputed": (
        dict(model_type="openai-gpt", vocab_size=64, n_embd=32, n_layer=1, n_head=2),
        dict(model__gradient_checkpointing_enable=True),
        "OpenAIGPTLMHeadModel cannot recompute",
    ),
    "attention dropout in a ring": (
        GPT2,
        dict(ds__packing_samples=True, ds__ring_attn_size=2),
        r"the model has attn_pdrop 0\.1: set it to 0",
    ),
    "weights in fewer bits": (
        dict(GPT2, quantization_config=dict(quant_method="gptq", bits=4)),
        {},
        r"model is quantized by gptq \(quantization_config in its config\.json\)",
    ),
    "attention scores that nobody reads": (
        dict(GPT2, output_attentions=True),
        {},
        "config.json has output_attentions true.*Set it to false",
    ),
    "outputs without names": (dict(GPT2, return_dict=False), {}, "config.json has return_dict false.*set it to true"),
    "no attention dropout in a ring": (
        dict(GPT2, attn_pdrop=0.0),
        dict(ds__packing_samples=True, ds__ring_attn_size=2),
        None,
    ),
}


@pytest.mark.parametrize(("model", "settings", "message"), CASES.values(), ids=CASES.keys())
def test_before_data_are_prepared(tmp_path, monkeypatch, model, settings, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n')
    AutoConfig.for_model(**model).save_pretrained(tmp_path / "model")
    config = parse_config(SFTConfig, flags(tmp_path / "model", rows, tmp_path / "out", **settings))
    if message is None:
        check_layout(config, read_facts(config, facts_of))
        return
    with pytest.raises(UserError, match=message):
        check_layout(config, read_facts(config, facts_of))
