"""Ring attention on gloo equals whole attention written out in float64, whatever the lengths and the ring's size."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models import Actor
from tests.helpers.tiny_models import tiny_model
from tests.models import ring_cases
from tests.models.batches import assert_close, gradients, make_samples, reference_log_probs

TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.06}
RAGGED = (13, 1, 30, 2, 7, 64)  # samples that no ring size divides, and some shorter than the ring


@pytest.fixture(params=["two_ranks", "four_ranks"])
def ranks(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_attention_of_many_ragged_samples(ranks, dtype):
    _assert_exact(ranks, dtype, lengths=RAGGED)


@pytest.mark.parametrize("lengths", [(64,), (2,), (1,), (3, 5)], ids=str)
def test_attention_of_few_tokens(ranks, lengths):
    _assert_exact(ranks, torch.float64, lengths=lengths)


@pytest.mark.parametrize(
    "options",
    [dict(window=5), dict(softcap=1.5), dict(with_sinks=True), dict(window=9, with_sinks=True), dict(window=1000)],
    ids=str,
)
def test_attention_with_all_that_models_ask(ranks, options):
    _assert_exact(ranks, torch.float64, lengths=RAGGED, **options)


@pytest.mark.parametrize("largest_tile", [1, 500])
@pytest.mark.parametrize(
    "options",
    [dict(window=5), dict(softcap=1.5), dict(window=9, softcap=1.5, with_sinks=True, head_stride=1, head_size=8)],
    ids=str,
)
def test_attention_in_small_tiles(ranks, options, largest_tile):
    _assert_exact(ranks, torch.float64, lengths=(*RAGGED, 1, 90), largest_tile=largest_tile, **options)


@pytest.mark.parametrize("head_stride", [1, 2])
def test_attention_some_heads_at_a_time(two_ranks, head_stride):
    _assert_exact(two_ranks, torch.float64, lengths=RAGGED, head_stride=head_stride, with_sinks=True)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "mistral_window", "mixtral", "gpt_oss", "longrope"])
def test_actor_equals_plain_transformers(ranks, kind):
    _assert_actor_exact(ranks, kind, RAGGED)


def test_actor_with_checkpointing(two_ranks):
    _assert_actor_exact(two_ranks, "llama", RAGGED, checkpointing=True)


def test_actor_where_most_ranks_hold_nothing(four_ranks):
    _assert_actor_exact(four_ranks, "llama", (2,))


def test_aux_loss_of_a_shared_pack_equals_that_of_the_whole(ranks):
    lengths = (13, 1, 30)
    whole = Actor(tiny_model("mixtral"), packing_samples=True)
    scores = whole.score_targets(**make_samples(lengths).packed(), with_aux_loss=True)
    scores.aux_loss.backward()
    for total, gradient in ranks.run(ring_cases.aux_loss, "mixtral", lengths):
        assert_close(total, scores.aux_loss.item(), 1e-6, "auxiliary loss")
        assert_close(gradient, ring_cases.router_weight(whole).grad, 1e-6, "router gradient")


def _assert_exact(ranks, dtype, **case):
    for rank, errors in enumerate(ranks.run(ring_cases.attention_errors, dtype=dtype, **case)):
        wrong = {name: error for name, error in errors.items() if not error <= TOLERANCES[dtype]}
        assert not wrong, f"rank {rank} of {ranks.world_size}: {wrong}"


def _assert_actor_exact(ranks, kind, lengths, **options):
    model, samples = tiny_model(kind, torch.float64), make_samples(lengths)
    expected = reference_log_probs(model, samples)
    expected.sum().backward()
    results = ranks.run(ring_cases.actor_scores, kind, lengths, **options)
    places = torch.cat([result["places"] for result in results])
    log_probs = torch.cat([result["log_probs"] for result in results])[places.argsort()]
    tolerance = 1e-6 if kind in ("gemma2", "gpt_oss") else 1e-12  # transformers' eager softmax is in float32
    assert_close(log_probs, expected.detach(), tolerance, "log-probs")
    for name, gradient in gradients(model).items():
        assert_close(results[0]["gradients"][name], gradient, 20 * tolerance, f"gradient of {name}")
