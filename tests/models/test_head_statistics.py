"""Likeliest token and entropy come from the tiles as they would from full logits, and change no bit of a log-prob."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models import Actor
from openrlhf.models.cpu_kernels import log_probs as cpu_log_probs
from openrlhf.models.head.log_prob_head import scores_from_logits, target_log_probs, weighted_log_probs
from openrlhf.models.head.tiles import LogitTransform
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, make_samples
from tests.models.test_head_probe import SquaresLogits, model_of

NUM_TARGETS, HIDDEN, VOCAB = 60, 8, 1000
TRANSFORMS = [LogitTransform(), LogitTransform(temperature=0.7), LogitTransform(scale=1.3, cap=3.0, temperature=0.7)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6}
SMALL_TILES = 4 * NUM_TARGETS * 300


def draw(dtype, with_bias=False):
    """Half of the targets are the likeliest token; a quarter the likeliest of the last tile alone."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(rows, HIDDEN, generator=generator).to(dtype).requires_grad_() for rows in (NUM_TARGETS, VOCAB)
    )
    bias = torch.randn(VOCAB, generator=generator).to(dtype).requires_grad_() if with_bias else None
    target_ids = torch.randint(0, VOCAB, (NUM_TARGETS,), generator=generator)
    logits = full_logits(hidden, weight, bias, LogitTransform())
    target_ids[::2], target_ids[1::4] = logits.argmax(1)[::2], 900 + logits[:, 900:].argmax(1)[1::4]
    return dict(hidden=hidden, weight=weight, bias=bias, target_ids=target_ids)


def full_logits(hidden, weight, bias, transform):
    """In float64, from the head's output as the model's precision rounds it."""
    output = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = output.detach().double() * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    return logits / transform.temperature


def entropy_of(logits):
    return torch.distributions.Categorical(logits=logits).entropy()


@pytest.fixture(params=["kernel", "torch"])
def computed_by(request, monkeypatch):
    """On a CPU the C++ kernel or, without it, torch."""
    if request.param == "torch":
        monkeypatch.setattr(cpu_log_probs, "_kernels", lambda dtype: None)


@pytest.mark.parametrize("tile_bytes", [SMALL_TILES, None])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_likeliest_and_entropy_are_those_of_full_logits(computed_by, dtype, transform, tile_bytes):
    tensors = draw(dtype)
    logits = full_logits(tensors["hidden"], tensors["weight"], None, transform)
    plain = target_log_probs(**tensors, transform=transform, tile_bytes=tile_bytes, with_entropy=True)
    weights = torch.ones(NUM_TARGETS)
    weighted = weighted_log_probs(
        **tensors, target_weights=weights, transform=transform, tile_bytes=tile_bytes, with_entropy=True
    )
    for scores in (plain, weighted):
        assert torch.equal(scores.is_likeliest, logits.argmax(1) == tensors["target_ids"])
        assert scores.is_likeliest[::2].all()
        assert not scores.is_likeliest.all()
        assert scores.entropy.dtype == scores.log_probs.dtype
        assert_close(scores.entropy, entropy_of(logits), TOLERANCES[dtype], "entropy")


def test_with_a_bias_and_several_rows_of_tiles(monkeypatch):
    monkeypatch.setattr("openrlhf.models.head.tiles._MAX_TILE_ROWS", 10)
    tensors = draw(torch.float64, with_bias=True)
    logits = full_logits(tensors["hidden"], tensors["weight"], tensors["bias"], LogitTransform())
    scores = target_log_probs(**tensors, tile_bytes=1, with_entropy=True)
    assert torch.equal(scores.is_likeliest, logits.argmax(1) == tensors["target_ids"])
    assert_close(scores.entropy, entropy_of(logits), 1e-12, "entropy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("distance", [1, 500], ids=["in one tile", "in two tiles"])
def test_of_equal_logits_that_with_the_lowest_id_is_the_likeliest(computed_by, dtype, distance):
    hidden, weight = torch.ones(2, HIDDEN, dtype=dtype), torch.zeros(VOCAB, HIDDEN, dtype=dtype)
    weight[[100, 100 + distance]] = 1.0
    scores = target_log_probs(hidden, weight, None, torch.tensor([100, 100 + distance]), tile_bytes=1)
    assert scores.is_likeliest.tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_of_extreme_logits(computed_by, dtype):
    """All tokens alike, one token alone, large logits, and tiles that add nothing to the first."""
    hidden = torch.eye(4, HIDDEN, dtype=dtype)
    weight = torch.zeros(VOCAB, HIDDEN, dtype=dtype)
    weight[5, 1] = 1e4
    weight[:, 2] = 300
    weight[300:, 3] = -1e4
    entropy = target_log_probs(
        hidden, weight, None, torch.zeros(4, dtype=torch.long), tile_bytes=1, with_entropy=True
    ).entropy
    expected = torch.tensor([VOCAB, 1, VOCAB, 300], dtype=torch.float64).log()
    assert_close(entropy, expected, 2e-5, "entropy")


def test_tokens_of_no_probability_have_no_part_in_the_entropy():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bias = torch.zeros(100, dtype=torch.float64)
    bias[50:] = -torch.inf
    weight = torch.cat([logits.T, logits.T])
    target_ids = torch.zeros(3, dtype=torch.long)
    scores = target_log_probs(torch.eye(3, dtype=torch.float64), weight, bias, target_ids, with_entropy=True)
    assert_close(scores.entropy, entropy_of(logits), 1e-12, "entropy")
    by_logits = scores_from_logits(weight.T + bias, target_ids, None, True, 1.0)
    assert_close(by_logits.entropy, entropy_of(logits), 1e-12, "entropy from full logits")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_is_not_hidden(computed_by, dtype, value):
    tensors = draw(dtype)
    with torch.no_grad():
        tensors["hidden"][4] = value
    scores = target_log_probs(**tensors, tile_bytes=SMALL_TILES, with_entropy=True)
    assert scores.entropy.isfinite().tolist() == [row != 4 for row in range(NUM_TARGETS)]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_entropy_costs_no_bit_of_log_probs_and_gradients(computed_by, dtype):
    tensors, weights = draw(dtype), torch.linspace(0, 1, NUM_TARGETS)
    sources = [tensors["hidden"], tensors["weight"]]
    found = []
    for with_entropy in (False, True):
        scores = weighted_log_probs(
            **tensors, target_weights=weights, tile_bytes=SMALL_TILES, with_entropy=with_entropy
        )
        assert (scores.entropy is not None) == with_entropy
        found.append([scores.log_probs, scores.weighted_sum, *torch.autograd.grad(scores.weighted_sum, sources)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_neither_has_a_gradient():
    tensors = draw(torch.float64)
    for scores in (
        target_log_probs(**tensors, with_entropy=True),
        weighted_log_probs(**tensors, target_weights=torch.ones(NUM_TARGETS), with_entropy=True),
        scores_from_logits(tensors["hidden"] @ tensors["weight"].T, tensors["target_ids"], None, True, 1.0),
    ):
        assert not scores.entropy.requires_grad
        assert not scores.is_likeliest.requires_grad


@pytest.mark.parametrize("head", ["plain", "other"])
@pytest.mark.parametrize("weights", [None, torch.zeros_like], ids=["without weights", "weighted"])
def test_an_actor_tells_both_whatever_its_head(head, weights):
    samples = make_samples()
    model = tiny_model("llama", torch.float64) if head == "plain" else model_of(SquaresLogits)
    reference = tiny_model("llama", torch.float64) if head == "plain" else model_of(SquaresLogits)
    logits = torch.cat([reference(input_ids=ids[None]).logits[0, :-1] for ids in samples.token_ids]) / 0.8
    actor = Actor(model, packing_samples=True, temperature=0.8)
    inputs = samples.packed()
    inputs["target_ids"][::2] = logits.argmax(-1)[::2]
    scores = actor.score_targets(**inputs, target_weights=weights, with_entropy=True)
    assert torch.equal(scores.is_likeliest, logits.argmax(-1) == inputs["target_ids"])
    assert_close(scores.entropy, entropy_of(logits.detach()), 1e-7, "entropy")
    assert actor.score_targets(**inputs).entropy is None


def test_without_a_target_there_is_nothing_to_tell():
    inputs = make_samples().packed()
    inputs["target_index"], inputs["target_ids"] = inputs["target_index"][:0], inputs["target_ids"][:0]
    scores = Actor(tiny_model("llama"), packing_samples=True).score_targets(**inputs, with_entropy=True)
    assert scores.is_likeliest.shape == scores.entropy.shape == (0,)
    assert scores.is_likeliest.dtype == torch.bool
