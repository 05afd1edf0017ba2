"""`--model.compile_layers`: graphs are made, none anew for other lengths, and they compute what the layers compute."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from torch import Tensor

from openrlhf.engine.torch_operators import num_compiled_graphs
from openrlhf.errors import UserError
from openrlhf.models import Actor, layers
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, gradients, make_samples

CHECKPOINTING = {"no checkpointing": None, "checkpointing": False, "reentrant checkpointing": True}
LENGTHS = ((7, 3, 12, 1, 9), (5, 20, 4), (2,), (64, 9, 2, 2, 2, 7), (40,))
TOLERANCE = 1e-5


@pytest.fixture
def traced_only(monkeypatch):
    """The graphs are made as always, and then run by torch instead of compiled kernels, which would take minutes."""
    torch.compiler.reset()
    layers._compiled_class.cache_clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield
    layers._compiled_class.cache_clear()
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "mixtral", "opt"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_new_lengths_make_no_new_graphs(traced_only, kind, checkpointing):
    packed = kind != "opt"
    compiled, plain = (_actor(kind, packed, CHECKPOINTING[checkpointing], is_compiled) for is_compiled in (True, False))
    num_graphs = [num_compiled_graphs()]
    for lengths in LENGTHS:
        found, expected = _log_probs(compiled, lengths, packed), _log_probs(plain, lengths, packed)
        assert_close(found, expected, TOLERANCE, f"log-probs of {lengths}")
        num_graphs.append(num_compiled_graphs())
    for name, gradient in gradients(plain).items():
        assert_close(gradients(compiled)[name], gradient, TOLERANCE, f"gradient of {name}")
    made = [after - before for before, after in zip(num_graphs, num_graphs[1:], strict=False)]
    assert made[0] > 0, "no graph was made"
    assert sum(made[1:]) == 0, f"graphs made for {LENGTHS}: {made}"


def _actor(kind: str, packed: bool, reentrant: bool | None, is_compiled: bool) -> Actor:
    actor = Actor(tiny_model(kind, num_hidden_layers=3), packing_samples=packed)
    if reentrant is not None:
        actor.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            actor.model.enable_input_require_grads()
    if is_compiled:
        actor.compile_layers()
    return actor.train()


def _log_probs(actor: Actor, lengths: tuple[int, ...], packed: bool) -> Tensor:
    """Adds to the gradients."""
    samples = make_samples(lengths)
    log_probs = actor.score_targets(**samples.packed()).log_probs if packed else actor(*samples.padded())
    log_probs.sum().backward()
    return log_probs.detach()
