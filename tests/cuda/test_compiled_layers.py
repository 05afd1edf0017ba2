"""`--model.compile_layers`: graphs are made, none anew for other lengths, and they compute what the layers compute."""

from __future__ import annotations

import importlib.util
import logging
import sysconfig

import pytest
import torch
from torch import Tensor

from openrlhf.engine.torch_operators import num_compiled_graphs
from openrlhf.errors import UserError
from openrlhf.models import Actor, layers
from tests.cuda import compiled_cases
from tests.helpers.slow import slow
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, gradients, make_samples

# layout and kind of checkpointing (None: none; else whether it is reentrant)
LAYOUTS = {
    "packed": (True, None),
    "packed, checkpointing": (True, False),
    "packed, reentrant checkpointing": (True, True),
    "padded, checkpointing": (False, False),
}
LENGTHS = ((7, 3, 13, 1, 11), (5, 20, 4), (64, 9, 2, 2, 2, 7), (13, 8))
TOLERANCE = 1e-5


@pytest.fixture
def traced_only():
    with compiled_cases.traced_only():
        yield


@pytest.mark.parametrize("layout", ["packed", "packed, checkpointing", *slow(list(LAYOUTS)[2:])])
def test_new_lengths_make_no_new_graphs(traced_only, caplog, layout):
    with caplog.at_level(logging.WARNING, "openrlhf"):
        _assert_graphs_serve_all_lengths("qwen3", *LAYOUTS[layout])
    assert not _told(caplog)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma2", "mixtral"])
def test_of_other_models(traced_only, kind):
    _assert_graphs_serve_all_lengths(kind, packed=True, reentrant=False)


@pytest.mark.slow
def test_in_a_ring(two_ranks):
    for made, error in two_ranks.run(compiled_cases.graphs_in_a_ring, "qwen3", LENGTHS):
        assert made[0] > 0, "no graph was made"
        assert sum(made[1:]) == 0, f"graphs made for {LENGTHS}: {made}"
        assert error <= TOLERANCE


def test_an_evaluation_in_between_makes_graphs_once(traced_only):
    actor = _actor("qwen3", packed=True, reentrant=False, is_compiled=True)
    made = []
    for lengths in LENGTHS:
        num_graphs = num_compiled_graphs()
        with torch.no_grad():
            actor.eval().score_targets(**make_samples(lengths).packed())
        _log_probs(actor.train(), lengths, packed=True)
        made.append(num_compiled_graphs() - num_graphs)
    assert sum(made[1:]) == 0, f"graphs made for {LENGTHS}: {made}"


def test_layers_of_which_nothing_is_compiled_are_named_once(traced_only, caplog):
    actor = _actor("qwen3", packed=True, reentrant=False, is_compiled=True)
    with caplog.at_level(logging.WARNING, "openrlhf"), torch.compiler.set_stance("force_eager"):
        _log_probs(actor, (7, 3), packed=True)
    (told,) = _told(caplog)
    assert "--model.compile_layers changes nothing: torch.compile made no graph of Qwen3DecoderLayer" in told


def test_a_look_at_the_layout_before_the_first_step_is_no_reason_to_warn(traced_only, caplog):
    actor = _actor("qwen3", packed=True, reentrant=False, is_compiled=True)
    with caplog.at_level(logging.WARNING, "openrlhf"):
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            actor.eval().score_targets(**make_samples((7, 3)).packed())
        _log_probs(actor.train(), (7, 3), packed=True)
    assert not _told(caplog)


def test_where_torch_compile_works_nothing_is_said():
    layers.check_compile_layers("cpu")
    layers.check_muon("cpu")


def test_torch_compile_switched_off_is_refused_at_the_start():
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(UserError, match=r"switched off here: unset TORCH_COMPILE_DISABLE .* leave --model\.compile_l"),
    ):
        layers.check_compile_layers("cpu")


@pytest.mark.parametrize(
    ("device_type", "named"), [("cpu", r"g\+\+ is not on the PATH"), ("cuda", "gcc or clang is not on the PATH")]
)
def test_a_missing_compiler_is_refused_at_the_start(monkeypatch, device_type, named):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # as if Triton were there
    with pytest.raises(UserError, match=rf"{named}.* or leave --model.compile_layers out"):
        layers.check_compile_layers(device_type)
    with pytest.raises(UserError, match=rf"{named}.* or set TORCH_COMPILE_DISABLE=1: Muon"):
        layers.check_muon(device_type)
    with torch.compiler.set_stance("force_eager"):  # as that variable does
        layers.check_muon(device_type)


@pytest.mark.parametrize("check", [layers.check_compile_layers, layers.check_muon])
def test_missing_headers_of_python_are_refused_at_the_start(monkeypatch, tmp_path, check):
    """What torch.compile writes includes Python.h, on CUDA as on the CPU."""
    monkeypatch.setattr(sysconfig, "get_path", lambda *names: str(tmp_path))
    with pytest.raises(UserError, match="install python3-dev, or "):
        check("cpu")


def test_headers_may_stand_where_debian_has_them(monkeypatch, tmp_path):
    """Its own scheme names another folder than the one of its package; torch looks in both."""
    get_path = sysconfig.get_path
    monkeypatch.setattr(sysconfig, "get_path", lambda *names: get_path(*names) if len(names) > 1 else str(tmp_path))
    layers.check_compiler("cpu", "or not.")


def test_on_cuda_a_missing_triton_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install triton, or leave --model.compile_layers out"):
        layers.check_compile_layers("cuda")


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("openrlhf")]


def _assert_graphs_serve_all_lengths(kind: str, packed: bool, reentrant: bool | None) -> None:
    compiled, plain = (_actor(kind, packed, reentrant, is_compiled) for is_compiled in (True, False))
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
    actor = Actor(tiny_model(kind), packing_samples=packed)
    if reentrant is not None:
        actor.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if is_compiled:
        actor.compile_layers()
    return actor.train()


def _log_probs(actor: Actor, lengths: tuple[int, ...], packed: bool) -> Tensor:
    """Adds to the gradients."""
    samples = make_samples(lengths)
    log_probs = actor.score_targets(**samples.packed()).log_probs if packed else actor(*samples.padded())
    log_probs.sum().backward()
    return log_probs.detach()
