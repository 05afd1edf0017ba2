"""The probe tells simple heads from those that only the model's own forward method computes."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from openrlhf.models import Actor
from openrlhf.models.head.probe import probe_head
from openrlhf.models.head.tiles import LogitTransform
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, make_samples, reference_log_probs

PLAIN = ["llama", "qwen3", "gemma3", "mixtral", "qwen3_moe", "gpt2", "opt", "gpt_oss", "mistral_window"]


class ScalesHidden(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        outputs = self.model(*args, **kwargs)
        outputs.logits = self.lm_head(outputs.last_hidden_state * 2)
        return outputs


class SquaresLogits(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits.square()
        return outputs


class ScalesThenCaps(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 5.0 * torch.tanh(outputs.logits * 0.5 / 5.0)
        return outputs


class BansATokenInPlace(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits.index_fill(-1, torch.tensor([7]), -1e4)
        return outputs


class Breaks(LlamaForCausalLM):
    def forward(self, *args, labels, **kwargs):
        raise AssertionError


def model_of(model_class, kind="llama"):
    plain = tiny_model(kind, torch.float64)
    model = model_class(plain.config).to(torch.float64)
    model.load_state_dict(plain.state_dict())
    return model


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_heads(kind):
    assert probe_head(tiny_model(kind)).transform == LogitTransform()


@pytest.mark.parametrize(
    ("kind", "transform"),
    [
        ("gemma2", LogitTransform(cap=3.0)),
        ("cohere", LogitTransform(scale=0.25)),
        ("granite", LogitTransform(scale=0.25)),
    ],
)
def test_scaled_and_capped_heads(kind, transform):
    assert probe_head(tiny_model(kind)).transform == transform


def test_scaled_and_capped_head():
    transform = probe_head(model_of(ScalesThenCaps)).transform
    assert transform.cap == pytest.approx(5.0, rel=1e-12)
    assert transform.scale == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("model_class", [ScalesHidden, SquaresLogits, BansATokenInPlace, Breaks])
def test_other_heads_are_not_taken_for_simple(model_class):
    finding = probe_head(model_of(model_class))
    assert finding.transform is None
    assert finding.reason


def test_a_head_that_is_no_linear_layer():
    model = tiny_model("llama")
    model.lm_head = nn.Sequential(model.lm_head)
    assert "Sequential" in probe_head(model).reason


def test_a_head_that_is_a_part_of_another_module():
    class Holds(type(tiny_model("llama"))):
        def get_output_embeddings(self):
            return self.holder[0]

    model = model_of(Holds)
    model.holder = nn.Sequential(model.lm_head)
    del model.lm_head
    assert probe_head(model).reason == "its output layer is a part of another module"


def test_the_probe_leaves_the_model_as_it_was():
    model = tiny_model("llama", torch.float64)
    children, ids = dict(model.named_children()), make_samples()
    before = reference_log_probs(model, ids)
    probe_head(model)
    assert dict(model.named_children()) == children
    assert torch.equal(reference_log_probs(model, ids), before)


@pytest.mark.parametrize("model_class", [ScalesHidden, SquaresLogits, ScalesThenCaps, BansATokenInPlace])
def test_the_actor_is_right_with_any_head(model_class, caplog):
    samples = make_samples()
    expected = reference_log_probs(model_of(model_class), samples, temperature=0.8)
    with caplog.at_level(logging.WARNING):
        actor = Actor(model_of(model_class), temperature=0.8)
    sequences, mask = samples.padded()
    found = actor(sequences, mask)[(mask[:, 1:] * mask[:, :-1]).bool()]
    assert_close(found.detach(), expected.detach(), 1e-7, "log-probs")
    assert ("full logits" in caplog.text) == (model_class is not ScalesThenCaps)
