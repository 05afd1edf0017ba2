"""Models from folders: the right dtype, and one clear message where there is none."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from openrlhf.errors import UserError
from openrlhf.models import Actor, RewardModel
from openrlhf.models.loading import load_config
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import make_samples


@pytest.fixture
def folder(tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("param_dtype", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_weights_come_in_the_dtype_asked_for(folder, param_dtype, dtype):
    actor = Actor(str(folder), param_dtype=param_dtype)
    assert {parameter.dtype for parameter in actor.parameters()} == {dtype}


def test_a_loaded_actor_scores_like_one_in_memory(folder):
    sequences, mask = make_samples().padded()
    loaded = Actor(str(folder), param_dtype="fp32")
    assert torch.equal(loaded(sequences, mask), Actor(tiny_model("qwen3"))(sequences, mask))


def test_tied_weights_stay_tied_and_the_saved_model_is_plain(folder, tmp_path):
    actor = Actor(str(folder), param_dtype="fp32", packing_samples=True)
    model = actor.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(again.get_output_embeddings()) is torch.nn.Linear
    assert again.config._attn_implementation == "sdpa"
    for (name, found), expected in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("make", [Actor, RewardModel])
def test_an_end_token_that_pads_is_trained(make, kind, tmp_path, caplog):
    """torch gives no gradient to the row of its padding_idx, nor do tied embeddings (qwen3)."""
    end = 2
    tiny_model(kind, pad_token_id=end).save_pretrained(tmp_path)
    model = make(str(tmp_path), param_dtype="fp32")
    assert "ends answers; its embedding may be trained, too" in caplog.text
    model(torch.tensor([[end, 3, 4]])).sum().backward()
    embedding = model.model.get_input_embeddings()
    assert embedding.padding_idx is None
    assert embedding.weight.grad[end].any()


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        Actor(str(tmp_path))


def test_a_name_that_is_nothing():
    with pytest.raises(UserError, match="no/such-model"):
        Actor("no/such-model")


def test_a_folder_without_weights(tmp_path):
    tiny_model("llama").config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        Actor(str(tmp_path))


def test_a_broken_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=str(tmp_path)):
        Actor(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "size"),
    [("hidden_size", 0), ("num_hidden_layers", -1), ("num_hidden_layers", 10**9), ("vocab_size", 10**15)],
)
def test_a_size_that_no_model_has_is_refused_before_one_is_made(name, size, tmp_path):
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "vocab_size": 64} | {name: size}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"its config.json has {name} {size:,}, where 1 to"):
        load_config(str(tmp_path))


def test_a_model_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="vit"):
        Actor(str(tmp_path))


def test_four_bits_need_bitsandbytes(folder):
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        Actor(str(folder), load_in_4bit=True)


def test_a_rank_that_is_lost_while_weights_are_shared_is_not_said_to_be_a_bad_model(folder, monkeypatch):
    said = "[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:63665."

    def from_pretrained(*args, **kwargs):
        raise RuntimeError(said)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(RuntimeError, match="Connection closed by peer") as raised:
        Actor(str(folder))
    assert not isinstance(raised.value, UserError)
