"""The last layer computes no more than is read, and nothing else changes (models/last_layer.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openrlhf.engine.model_internals import layers_of
from openrlhf.engine.torch_operators import num_compiled_graphs
from openrlhf.models import Actor
from openrlhf.models.last_layer import LastLayer
from tests.cuda import compiled_cases
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, gradients, make_samples

USUAL = ["qwen3", "llama", "granite", "gemma2"]
OF_ANOTHER_FORM = ["cohere", "gpt2"]  # an MLP in parallel with attention, other names
READ = slice(0, None, 3)  # every third target


@pytest.mark.parametrize("kind", USUAL)
def test_log_probs_and_gradients_stay_the_same(kind):
    """In float32, where both can be told from rounding."""
    short, whole = _shortened(kind), Actor(tiny_model(kind), packing_samples=True)
    assert _rows_of_last_mlp(short) == len(_pack()["target_ids"])
    assert_close(_log_probs(short), _log_probs(whole), 1e-5, "log-probs")
    for name, gradient in gradients(whole).items():
        assert_close(gradients(short)[name], gradient, 1e-5, f"gradient of {name}")


def test_padded_batches_are_read_at_their_own_places():
    short, whole = _shortened("qwen3"), Actor(tiny_model("qwen3"))
    sequences, mask = make_samples().padded()
    inputs = dict(input_ids=sequences, attention_mask=mask, target_index=torch.tensor([1, 13, 30]))
    found, expected = (
        actor.score_targets(**inputs, target_ids=torch.tensor([7, 8, 9])).log_probs for actor in (short, whole)
    )
    assert_close(found, expected, 1e-5, "log-probs")


@pytest.mark.parametrize("kind", OF_ANOTHER_FORM)
def test_a_layer_of_another_form_computes_all(kind):
    short, whole = _shortened(kind), Actor(tiny_model(kind), packing_samples=True)
    assert_close(_log_probs(short), _log_probs(whole), 0.0, "log-probs")


def test_an_mlp_that_looks_at_other_tokens_computes_all():
    short, whole = _shortened("qwen3"), Actor(tiny_model("qwen3"), packing_samples=True)
    for actor in (short, whole):
        mlp: Any = layers_of(actor.scorer.base_model)[-1].mlp
        mlp.register_forward_hook(lambda module, args, output: output + args[0].mean(1, keepdim=True))
    assert_close(_log_probs(short), _log_probs(whole), 0.0, "log-probs")


def test_a_recomputed_layer_computes_all():
    actor = _shortened("qwen3").train()
    actor.gradient_checkpointing_enable()
    assert _rows_of_last_mlp(actor) == _pack()["input_ids"].numel()
    _log_probs(actor).sum()


def test_a_layer_whose_parts_alone_are_recomputed_computes_all():
    actor = _shortened("qwen3").train()
    layers_of(actor.scorer.base_model)[-1].mlp.gradient_checkpointing = True
    assert _rows_of_last_mlp(actor) == _pack()["input_ids"].numel()


@pytest.mark.parametrize(
    ("kind", "dtype", "leaves_out"),
    [
        ("qwen3", torch.bfloat16, True),
        ("qwen3", torch.float32, True),
        ("qwen3_moe", torch.bfloat16, False),  # the experts' loads count all tokens
    ],
)
def test_it_is_for_dense_models(kind, dtype, leaves_out):
    actor = Actor(tiny_model(kind, dtype), packing_samples=True)
    actor.leave_out_unread()
    assert (actor.scorer.last_layer is not None) == leaves_out


def test_other_numbers_of_tokens_make_no_new_graphs():
    with compiled_cases.traced_only():
        actor = _shortened("qwen3").train()
        actor.compile_layers()
        made = []
        for lengths in ((7, 3, 13, 1, 11), (5, 20, 4), (64, 9, 2, 2, 2, 7), (13, 8)):
            num_graphs = num_compiled_graphs()
            found = _log_probs(actor, lengths)
            assert_close(found, _log_probs(_shortened("qwen3"), lengths), 1e-5, f"log-probs of {lengths}")
            made.append(num_compiled_graphs() - num_graphs)
        assert made[0] > 0, "no graph was made"
        assert sum(made[1:]) == 0, f"graphs made: {made}"


def _shortened(kind: str) -> Actor:
    actor = Actor(tiny_model(kind), packing_samples=True)
    base_model = actor.scorer.base_model
    actor.scorer.last_layer = LastLayer.of(actor.scorer._backbone, layers_of(base_model))
    return actor


def _pack(lengths: tuple[int, ...] = (7, 3, 12, 1, 9)) -> dict[str, Any]:
    pack = make_samples(lengths).packed()
    return pack | {name: pack[name][READ] for name in ("target_index", "target_ids")}


def _log_probs(actor: Actor, lengths: tuple[int, ...] = (7, 3, 12, 1, 9)) -> Tensor:
    """With their gradients in the model."""
    actor.zero_grad()
    log_probs = actor.score_targets(**_pack(lengths)).log_probs
    log_probs.square().sum().backward()
    return log_probs.detach()


def _rows_of_last_mlp(actor: Actor) -> int:
    seen: list[int] = []
    mlp: Any = layers_of(actor.scorer.base_model)[-1].mlp
    handle = mlp.register_forward_hook(lambda module, args, output: seen.append(_rows(args)))
    actor.score_targets(**_pack())
    handle.remove()
    return seen[-1]


def _rows(args: tuple[Tensor | nn.Module, ...]) -> int:
    (hidden,) = args
    assert isinstance(hidden, Tensor)
    return hidden.shape[:-1].numel()
