"""Adapters as PEFT has them: exported, plain PEFT opens them; they are trained on, and merged; and frozen weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.checkpoint.export import export_model
from openrlhf.cli.lora_combiner import main as combine
from openrlhf.config import LoraConfig
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.head.log_prob_head import LogProbHead
from openrlhf.models.loading import four_bit_config
from openrlhf.models.lora import freeze_all_but
from openrlhf.run.merge import merge_adapters
from tests.equivalence.adapter_cells import set_trained
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import CHATML, tiny_tokenizer
from tests.helpers.workbench import save_model
from tests.zoo.shrink import small_model_named

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("llama", dict(use_rslora=True)),
    "dora": ("qwen3", dict(use_dora=True)),
    "head": ("llama", dict(modules_to_save=("lm_head",))),
    "embeddings and head": ("qwen3", dict(modules_to_save=("embed_tokens", "lm_head"))),
    "embeddings": ("qwen3", dict(modules_to_save=("embed_tokens",), target_modules=("q_proj",))),
    "norms": ("qwen3", dict(modules_to_save=("norm",))),
    "adapted embeddings": ("qwen3", dict(target_modules=("embed_tokens", "q_proj"))),
    "adapted head": ("qwen3", dict(target_modules=("lm_head",))),
    "one layer": ("llama", dict(layers_to_transform=(1,))),
    "experts": ("mixtral", dict(target_modules=("q_proj",), target_parameters=EXPERTS)),
    "experts by name": ("qwen3_moe", {}),
}
IDS = torch.arange(3, 23)[None]


def of_transformers(model: Any) -> Tensor:
    """Log-probs of the tokens after the first, by a plain model."""
    return model.eval()(input_ids=IDS).logits.log_softmax(-1)[0, :-1].gather(1, IDS[0, 1:, None])[:, 0].detach()


def adapted(base: Path, **lora: Any) -> Actor:
    actor = Actor(str(base), param_dtype="fp32", lora=LoraConfig(rank=4, **lora))
    set_trained(actor.model)
    return actor


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory) -> tuple[Path, Actor]:
    """A folder with `base` and `adapter`, and the model that was exported."""
    folder, (kind, settings) = tmp_path_factory.mktemp("adapter"), KINDS[request.param]
    actor = adapted(save_model(folder / "base", kind), **settings)
    export_model(actor.model, tiny_tokenizer(chat_template=CHATML), folder / "adapter")
    return folder, actor


def test_plain_peft_opens_what_is_exported_with_the_same_log_probs(exported):
    folder, actor = exported
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "adapter")
    torch.testing.assert_close(of_transformers(opened), actor(IDS)[0].detach(), rtol=0, atol=2e-6)


def test_a_server_finds_what_it_reads_beside_the_adapter(exported):
    folder, _ = exported
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["peft_type"]) == (4, "LORA")
    assert settings["base_model_name_or_path"] == str(folder / "base")
    # With one transformers would look for the base's weights here.
    assert not (folder / "adapter" / "config.json").exists()
    assert AutoTokenizer.from_pretrained(folder / "adapter").chat_template == CHATML
    assert not list((folder / "adapter").glob("model*"))


def test_training_goes_on_from_an_adapter(exported):
    folder, actor = exported
    lora = LoraConfig(adapter_name_or_path=str(folder / "adapter"))
    started = Actor(str(folder / "base"), param_dtype="fp32", lora=lora)
    now, before = (dict(one.model.named_parameters()) for one in (started, actor))
    assert now.keys() == before.keys()
    for name, parameter in now.items():
        assert torch.equal(parameter, before[name]), name
        assert parameter.requires_grad == before[name].requires_grad, name


def test_a_merged_model_has_the_same_log_probs(exported):
    folder, actor = exported
    words = ["--model_path", str(folder / "base"), "--lora_path", str(folder / "adapter")]
    combine([*words, "--output_path", str(folder / "merged")])
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(of_transformers(merged), actor(IDS)[0].detach(), rtol=0, atol=5e-6)
    written = load_file(folder / "merged" / "model.safetensors")
    assert ("lm_head.weight" in written) != merged.config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(folder / "merged").chat_template == CHATML


def test_several_adapters_are_merged_one_after_the_other(tmp_path):
    base = save_model(tmp_path / "base", "llama")
    first = adapted(base, target_modules=("q_proj",))
    export_model(first.model, tiny_tokenizer(), tmp_path / "first")
    second = adapted(base, target_modules=("down_proj",))
    export_model(second.model, tiny_tokenizer(), tmp_path / "second")
    both = f"{tmp_path / 'first'},{tmp_path / 'second'}"
    combine(["--model_path", str(base), "--lora_path", both, "--output_path", str(tmp_path / "merged")])
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    for name in ("first", "second"):
        model = PeftModel.from_pretrained(model, tmp_path / name).merge_and_unload()
    expected = of_transformers(model)
    found = of_transformers(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert (found - first(IDS)[0].detach()).abs().max() > 1e-3, "the second adapter changed nothing"


@pytest.mark.parametrize(("kind", "layer"), [("llama", ".layers.1."), ("gpt2", ".h.1.")])
def test_numbers_of_layers_leave_the_head_alone(kind, layer):
    actor = Actor(tiny_model(kind), lora=LoraConfig(rank=4, layers_to_transform=(1,)))
    trained = [name for name, parameter in actor.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(layer in name for name in trained)


def test_a_head_that_is_trained_stays_thrifty(monkeypatch):
    asked = []
    forward = LogProbHead.forward
    monkeypatch.setattr(LogProbHead, "forward", lambda *words: asked.append(len(words)) or forward(*words))
    Actor(tiny_model("llama"), lora=LoraConfig(rank=4, modules_to_save=("lm_head",)))(IDS)
    assert asked == [5], "the head was asked for logits, not for log-probs"


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("llama", dict(layers_to_transform=(0, 2)), "layers_to_transform 2: the model has the layers 0 to 1"),
        ("llama", dict(modules_to_save=("lm_haed",)), "modules_to_save lm_haed: .* Near it: lm_head"),
        ("mixtral", dict(target_parameters=("experts.up",)), "target_parameters experts.up: nothing in the model"),
        ("qwen3_moe", dict(use_dora=True), "--ds.lora.use_dora .leave it out, or name the layers"),
        ("llama", dict(rank=0, adapter_name_or_path="/nowhere"), "adapter_name_or_path /nowhere: no adapter there"),
    ],
    ids=["layer", "module", "parameter", "DoRA of experts", "adapter"],
)
def test_what_the_model_does_not_have_is_refused_by_name(kind, settings, said):
    with pytest.raises(UserError, match=said):
        Actor(tiny_model(kind), lora=LoraConfig(**({"rank": 4} | settings)))


@pytest.mark.parametrize("damage", ["another model", "a weight is missing"])
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, damage):
    actor = adapted(save_model(tmp_path / "base", "llama"))
    export_model(actor.model, None, tmp_path / "adapter")
    if damage == "a weight is missing":
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        save_file(dict(list(load_file(file).items())[1:]), file)
    other = tiny_model("llama", **(dict(hidden_size=32) if damage == "another model" else {}))
    with pytest.raises(UserError, match="does not fit the model"):
        Actor(other, lora=LoraConfig(adapter_name_or_path=str(tmp_path / "adapter")))


@pytest.mark.parametrize("model_type", ["bert", "prophetnet"])
def test_a_merge_writes_every_weight_that_is_tied_no_more(model_type, tmp_path):
    """Beside the head: the bias of BERT's, and ProphetNet's second table."""
    small_model_named(model_type).save_pretrained(tmp_path / "base")
    actor = adapted(tmp_path / "base", target_modules=("word_embeddings",))
    export_model(actor.model, tiny_tokenizer(vocab_size=300), tmp_path / "adapter")
    merge_adapters(str(tmp_path / "base"), [str(tmp_path / "adapter")], str(tmp_path / "merged"))
    merged, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    torch.testing.assert_close(of_transformers(merged), of_transformers(actor.model), rtol=0, atol=5e-5)


def test_embeddings_that_do_more_than_look_up_are_refused(tmp_path):
    """And by a merge, of an adapter from elsewhere; those that scale what they find take one."""
    lora = LoraConfig(rank=4, target_modules=("embed_tokens",))
    said = r"model.embed_tokens \(InklingNormedEmbedding\) does more than look up a row of its weight"
    with pytest.raises(UserError, match=said):
        Actor(small_model_named("inkling_text"), lora=lora)
    model = small_model_named("inkling_text")
    model.save_pretrained(tmp_path / "base")
    with_adapter = get_peft_model(model, PeftLoraConfig(target_modules=["embed_tokens"]))
    with_adapter.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(UserError, match=rf"cannot be merged into .*{said}"):
        merge_adapters(str(tmp_path / "base"), [str(tmp_path / "adapter")], str(tmp_path / "merged"))
    actor = Actor(small_model_named("gemma2"), lora=lora)
    assert any("embed_tokens.lora_embedding_A" in name for name, _ in actor.named_parameters())


@pytest.mark.parametrize("damage", ["base lacks a weight", "base is cut", "adapter lacks a weight", "adapter is cut"])
def test_a_merge_of_what_is_not_whole_is_refused(tmp_path, damage):
    """What is missing would be merged as random numbers, or not at all."""
    export_model(adapted(save_model(tmp_path / "base", "llama")).model, None, tmp_path / "adapter")
    name, _, problem = damage.partition(" ")
    file = tmp_path / name / ("model.safetensors" if name == "base" else "adapter_model.safetensors")
    if problem == "is cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        save_file(dict(sorted(load_file(file).items())[1:]), file, {"format": "pt"})
    words = ["--model_path", str(tmp_path / "base"), "--lora_path", str(tmp_path / "adapter")]
    with pytest.raises(UserError, match="cannot be merged into"):
        combine([*words, "--output_path", str(tmp_path / "merged")])
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_keeps_the_tie_says_nothing_of_it(tmp_path):
    export_model(adapted(save_model(tmp_path / "base", "qwen3")).model, tiny_tokenizer(), tmp_path / "adapter")
    words = ["--model_path", str(tmp_path / "base"), "--lora_path", str(tmp_path / "adapter")]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        combine([*words, "--output_path", str(tmp_path / "merged")])
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]
    assert [str(one.message) for one in told if "tied" in str(one.message)] == []


def test_a_merge_into_another_base_is_told(tmp_path, capsys):
    export_model(adapted(save_model(tmp_path / "base", "llama")).model, tiny_tokenizer(), tmp_path / "adapter")
    (tmp_path / "base").rename(tmp_path / "other")
    words = ["--model_path", str(tmp_path / "other"), "--lora_path", str(tmp_path / "adapter")]
    combine([*words, "--output_path", str(tmp_path / "merged")])
    assert f"was trained on {tmp_path / 'base'}, and is merged into {tmp_path / 'other'}" in capsys.readouterr().out


def test_weights_are_frozen_by_pattern():
    model = tiny_model("qwen3")
    freeze_all_but(model, [r"layers\.1\.", "lm_head"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "model.embed_tokens.weight" in trained, "it is the head's weight too"
    assert {name for name in trained if ".layers." in name} == {
        name for name, _ in model.named_parameters() if ".layers.1." in name
    }
    with pytest.raises(UserError, match=r"--model.trainable laeyrs meets no weight .* model.layers.<n>.mlp.up_proj"):
        freeze_all_but(model, ["laeyrs"])


def test_bitsandbytes_that_cannot_be_used_is_told_with_its_reason(monkeypatch):
    def fail(name: str) -> None:
        raise RuntimeError("libcudart.so was not found")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(UserError, match="bitsandbytes cannot be used here: libcudart.so was not found"):
        four_bit_config(torch.bfloat16)
