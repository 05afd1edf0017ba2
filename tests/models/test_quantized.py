"""Quantized bases: trained and exported as plain weights, or refused in words."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from openrlhf.checkpoint.export import export_model
from openrlhf.checkpoint.rehearsal import try_export
from openrlhf.errors import UserError
from openrlhf.models import Actor, RewardModel
from openrlhf.models.quantized import check_quantization, check_trainable
from openrlhf.run.merge import merge_adapters
from openrlhf.strategy import DeepspeedStrategy
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import tiny_tokenizer
from tests.models.batches import assert_close, make_samples
from tests.models.quantized_bases import save_fp8, save_mxfp4, write_quantization

SAVED = {
    "fp8": lambda folder: save_fp8(folder, "qwen3"),
    "fp8 experts": lambda folder: save_fp8(folder, "qwen3_moe"),
    "mxfp4 experts": save_mxfp4,
}


@pytest.fixture(params=SAVED.values(), ids=SAVED.keys())
def base(request, tmp_path):
    """(folder, the weights that it stands for)"""
    return tmp_path / "base", request.param(tmp_path / "base")


def assert_holds(folder, meant):
    """The folder holds these weights, plain, and says so."""
    found = load_file(folder / "model.safetensors")
    assert found.keys() == meant.keys()
    for name, weight in meant.items():
        assert found[name].dtype == torch.float32, name
        assert_close(found[name], weight, 1e-6, name)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_weights_are_exported_plain(base, tmp_path, caplog):
    folder, meant = base
    model = Actor(str(folder), param_dtype="fp32").model
    assert f"{folder} is quantized by" in caplog.text
    try_export(model, None, tmp_path / "out")
    export_model(model, None, tmp_path / "out")
    assert_holds(tmp_path / "out", meant)


def test_blocks_that_do_not_divide_a_matrix_are_refused(tmp_path):
    """transformers takes blocks of rows / scales, and so reads such a matrix with other blocks than it was made of."""
    save_fp8(tmp_path / "base", "qwen3")
    write_quantization(tmp_path / "base", dict(quant_method="fp8", weight_block_size=[24, 24]))
    with pytest.raises(UserError, match=r"has the shape \(\d+, \d+\), which blocks of \(24, 24\) do not divide"):
        Actor(str(tmp_path / "base"), param_dtype="fp32")


def test_every_matrix_gets_a_gradient(base):
    folder, _ = base
    actor = Actor(str(folder), param_dtype="fp32", packing_samples=True)
    actor.score_targets(**make_samples().packed()).log_probs.sum().backward()
    assert [name for name, weight in actor.model.named_parameters() if weight.grad is None] == []


def test_a_reward_model_of_a_quantized_base_is_exported_plain(tmp_path):
    meant = save_fp8(tmp_path / "base", "qwen3")
    model = RewardModel(str(tmp_path / "base"), param_dtype="fp32").model
    export_model(model, None, tmp_path / "out")
    meant["score.weight"] = model.score.weight.detach()
    meant.pop("lm_head.weight", None)
    assert_holds(tmp_path / "out", meant)


def test_adapters_are_merged_into_plain_weights(tmp_path):
    meant = save_fp8(tmp_path / "base", "qwen3")
    adapted = Actor(str(tmp_path / "base"), param_dtype="fp32", lora_rank=2).model  # which begins as the base is
    export_model(adapted, None, tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    merge_adapters(str(tmp_path / "base"), [str(tmp_path / "adapter")], str(tmp_path / "out"), torch.float32)
    assert_holds(tmp_path / "out", meant)


REFUSED = {
    "another method": (dict(quant_method="gptq", bits=4), False, "quantized by gptq .* unquantized copy of the model"),
    "4 bits unasked for": (
        dict(quant_method="bitsandbytes", load_in_4bit=True),
        False,
        "quantized by bitsandbytes, 4 bits .* Or give both flags with this one",
    ),
    "8 bits in place of 4": (
        dict(quant_method="bitsandbytes", load_in_8bit=True),
        True,
        "--ds.load_in_4bit: .* quantized already, by bitsandbytes .* unquantized copy of the model.$",
    ),
    "4 bits on top of 8": (dict(quant_method="fp8"), True, "already, by fp8 .* or leave the flag out"),
}


@pytest.mark.parametrize(("quantization", "load_in_4bit", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_trained_is_refused_with_the_remedy(tmp_path, quantization, load_in_4bit, message):
    tiny_model("qwen3").config.save_pretrained(tmp_path)
    write_quantization(tmp_path, quantization)
    config = AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        check_quantization(config, str(tmp_path), load_in_4bit)
    for model_class in (Actor, RewardModel) if load_in_4bit else ():
        with pytest.raises(UserError, match=message):
            model_class(str(tmp_path), load_in_4bit=True)


def test_a_model_that_is_only_asked_may_be_quantized_by_any_method(tmp_path):
    """A frozen reference, a reward model that scores: transformers loads them, and says what it needs to."""
    tiny_model("qwen3").save_pretrained(tmp_path)
    write_quantization(tmp_path, dict(quant_method="gptq", bits=4))
    for model_class in (Actor, RewardModel):
        with pytest.raises(UserError, match="Loading a GPTQ quantized model requires"):
            model_class(str(tmp_path))


def test_a_model_that_is_trained_may_not():
    model = tiny_model("qwen3")
    check_trainable(model.config)
    model.config.quantization_config = dict(quant_method="gptq", bits=4)
    with pytest.raises(UserError, match="the model is quantized by gptq"):
        DeepspeedStrategy().prepare((Actor(model), None, None))


def test_4_bits_of_bitsandbytes_are_taken_as_they_are_with_the_flag():
    config = tiny_model("qwen3").config
    config.quantization_config = dict(quant_method="bitsandbytes", load_in_4bit=True)
    check_quantization(config, "base", load_in_4bit=True)
