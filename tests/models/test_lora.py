"""Adapters stand beside every layer that is computed as a linear one; what gets none is told."""

from __future__ import annotations

import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from openrlhf.config import LoraConfig, SFTConfig, parse_config
from openrlhf.errors import UserError
from openrlhf.models import Actor, lora
from openrlhf.models.activation_memory import memory_of
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.run.builders import check_layout
from tests.helpers.tiny_models import tiny_model
from tests.helpers.workbench import flags
from tests.models.batches import assert_close, make_samples, reference_log_probs
from tests.zoo.shrink import small_model_named

LLAMA4 = dict(
    model_type="llama4_text", vocab_size=512, hidden_size=64, intermediate_size=96, intermediate_size_mlp=96,
    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=4,
)  # fmt: skip


IDS = torch.arange(12, 24)[None]


def adapted_layers(actor):
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in actor.named_parameters() if ".lora_A" in name}


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_model("phimoe"),
        lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA4)).eval(),
    ],
    ids=["phimoe", "llama4"],
)
def test_a_router_that_is_linear_by_class_alone_gets_none(make):
    model, samples = make(), make_samples()
    expected = reference_log_probs(model, samples).detach()
    actor = Actor(model, lora_rank=4)
    sequences, mask = samples.padded()
    log_probs = actor(sequences, mask)[(mask[:, 1:] * mask[:, :-1]).bool()]
    assert_close(log_probs.detach(), expected, 1e-5, "log-probs")
    log_probs.sum().backward()
    assert adapted_layers(actor) >= {"q_proj", "o_proj"}
    assert not adapted_layers(actor) & {"router", "gate"}


def test_a_linear_class_of_the_models_own_that_computes_as_one_gets_adapters():
    config = AutoConfig.for_model("falcon", vocab_size=512, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    actor = Actor(AutoModelForCausalLM.from_config(config), lora_rank=4)
    assert adapted_layers(actor) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba", "jamba"])
def test_default_adapters_leave_out_what_is_read_without_a_call(model_type):
    actor = Actor(small_model_named(model_type), lora_rank=4)
    actor(IDS)[0].sum().backward()
    assert adapted_layers(actor) >= {"in_proj", "x_proj"}
    assert [name for name, one in actor.named_parameters() if "lora_B" in name and not one.grad.any()] == []


def test_every_model_whose_kernel_takes_a_layers_weight_is_known():
    """Kernels of mamba_ssm take the last layer's weight, on a GPU and in training alone."""
    folder = Path(transformers.__file__).parent / "models"
    found = {
        path.parent.name
        for path in folder.glob("*/modeling_*.py")
        if "outproj_weight=self.out_proj.weight" in path.read_text(encoding="utf-8")
    }
    assert found >= {"mamba2", "bamba"}
    assert {name for name in found if "out_proj" in lora._UNCALLED_LAYERS.get(name, ())} == found


def test_a_folders_adapter_beside_what_is_read_without_a_call_is_not_trained_on(tmp_path):
    model = small_model_named("jamba")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["dt_proj", "in_proj"])).save_pretrained(tmp_path)
    of_folder = LoraConfig(adapter_name_or_path=str(tmp_path))
    with pytest.raises(UserError, match=r"has weights for .*\.dt_proj: the model reads .* Merge it first"):
        lora.add_lora(small_model_named("jamba"), of_folder)
    lora.add_lora(small_model_named("jamba"), of_folder, keeps_dtype=False)  # for a merge


def test_a_package_that_peft_does_not_take_is_told_before_weights_are_loaded(monkeypatch):
    """PEFT looks for torchao at every layer, and raises where it finds an old one."""

    def found_old():
        raise ImportError("Found an incompatible version of torchao. Found version 0.7.0\nmore lines")

    monkeypatch.setattr(peft.tuners.lora.torchao, "is_torchao_available", found_old)
    model = tiny_model("llama")
    words = r"^--ds.lora.rank: PEFT does not take a package here: Found an .* 0\.7\.0\. Update or remove it\.$"
    with pytest.raises(UserError, match=words):
        memory_of(ModelFacts(type(model), model.config, model.dtype), LoraConfig(rank=2), recomputes=False)


def test_a_package_that_breaks_peft_is_told_before_data_are_prepared(monkeypatch, tmp_path):
    """As bitsandbytes does where its CUDA is not: PEFT loads whatever of its kind is installed."""
    site, model = tmp_path / "site", tiny_model("llama")
    broken = {"peft": "import bitsandbytes", "bitsandbytes": "import ctypes\nctypes.CDLL('libcudart.so.1')"}
    for name, code in broken.items():
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "peft")
    model.config.save_pretrained(tmp_path)
    (rows := tmp_path / "rows.jsonl").touch()
    config = parse_config(SFTConfig, flags(tmp_path, rows, tmp_path / "out", ds__lora__rank=2))
    words = r"^--ds.lora.rank: PEFT .* package bitsandbytes fails here \(OSError: libcudart.* Update or remove it\.$"
    with pytest.raises(UserError, match=words):
        check_layout(config, ModelFacts(type(model), model.config, model.dtype))
    with pytest.raises(UserError, match=words):
        Actor(model, lora_rank=2)


@pytest.mark.parametrize("layer", ["out_proj", "dt_proj", "mixer.dt_proj"])
def test_a_layer_that_takes_none_is_refused_by_its_flag_with_those_that_do(layer):
    message = rf"--ds.lora.target_modules in_proj,{layer}: .* take adapters: in_proj, lm_head, x_proj\.$"
    with pytest.raises(UserError, match=message):
        Actor(small_model_named("mamba"), lora_rank=4, target_modules=["in_proj", layer])


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "openrlhf.models.lora"]


@pytest.mark.parametrize("names", [None, "all-linear", ["all-linear"]])
def test_fused_experts_without_adapters_are_told_in_one_line(caplog, names):
    model = tiny_model("gpt_oss")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    share = sum(size for name, size in sizes.items() if name.endswith("_proj") and "experts" in name) / sum(
        sizes.values()
    )
    Actor(model, lora_rank=4, target_modules=names)
    assert lines_of(caplog) == [
        f"LoRA: no adapters for the experts' fused weights (gate_up_proj and down_proj, {share:.0%} of all weights). "
        "They stay as they are."
    ]


def test_experts_that_get_adapters_are_not_told_of(caplog):
    actor = Actor(tiny_model("qwen3_moe"), lora_rank=4)
    assert any(".experts." in name and "lora_" in name for name, _ in actor.named_parameters())
    assert lines_of(caplog) == []


def test_experts_with_dropout_are_refused_by_its_flag():
    with pytest.raises(UserError, match=r"--ds.lora.dropout 0.1 \(set 0 to adapt the experts\)"):
        Actor(tiny_model("qwen3_moe"), lora_rank=4, lora_dropout=0.1)


def test_layers_that_were_named_are_all_that_is_asked_for(caplog):
    Actor(tiny_model("gpt_oss"), lora_rank=4, target_modules=["q_proj"])
    assert lines_of(caplog) == []


def test_layers_that_cannot_be_recomputed_are_refused():
    config = AutoConfig.for_model("openai-gpt", vocab_size=512, n_embd=32, n_layer=1, n_head=2)
    actor = Actor(AutoModelForCausalLM.from_config(config))
    with pytest.raises(UserError, match=r"OpenAIGPTLMHeadModel .* leave --model.gradient_checkpointing_enable out"):
        actor.gradient_checkpointing_enable()


@pytest.mark.parametrize("packed", [False, True])
def test_the_text_of_a_model_that_also_sees_is_trained(packed):
    sizes = dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    text = dict(num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, **sizes)
    vision = dict(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32, image_size=28)
    ids = dict(boi_token_index=500, eoi_token_index=501, image_token_index=502)
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=dict(patch_size=14, **vision), **ids)
    torch.manual_seed(0)
    model, samples = AutoModelForCausalLM.from_config(config).eval(), make_samples(vocab_size=500)
    expected = reference_log_probs(model, samples).detach()
    actor = Actor(model, packing_samples=packed)
    if packed:
        found = actor.score_targets(**samples.packed()).log_probs
    else:
        sequences, mask = samples.padded()
        found = actor(sequences, mask)[(mask[:, 1:] * mask[:, :-1]).bool()]
    assert_close(found.detach(), expected, 1e-5, "log-probs")
