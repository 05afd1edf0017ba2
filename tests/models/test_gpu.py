"""The CUDA back ends against plain transformers in float64 on the CPU; two ranks share one GPU over gloo."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models import Actor
from tests.helpers.tiny_models import tiny_model
from tests.models import ring_cases
from tests.models.batches import assert_close, make_samples, reference_log_probs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BF16_TOLERANCE = 0.05
RAGGED = (13, 1, 30, 2, 7, 64)


@pytest.mark.parametrize("name", ["torch_varlen", "per_sample"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral_window", "gemma2"])
def test_packed_back_ends(kind, name):
    samples = make_samples(RAGGED)
    expected = reference_log_probs(tiny_model(kind, torch.float64), samples)
    actor = Actor(tiny_model(kind, torch.bfloat16).cuda(), name, packing_samples=True)
    inputs = {key: value.cuda() if torch.is_tensor(value) else value for key, value in samples.packed().items()}
    found = actor.score_targets(**inputs).log_probs
    found.sum().backward()
    assert_close(found.detach().cpu(), expected.detach(), BF16_TOLERANCE, "log-probs")
    assert all(parameter.grad.isfinite().all() for parameter in actor.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ring_of_two_ranks_on_one_gpu(two_ranks, dtype):
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.06}[dtype]
    for errors in two_ranks.run(ring_cases.attention_errors, RAGGED, dtype, device="cuda"):
        assert max(errors.values()) <= tolerance, errors


def test_tiles_on_the_gpu_equal_full_logits():
    from openrlhf.models.head.log_prob_head import target_log_probs

    hidden = torch.randn(300, 64, device="cuda", requires_grad=True)
    weight = torch.randn(5000, 64, device="cuda", requires_grad=True)
    target_ids = torch.randint(0, 5000, (300,), device="cuda")
    found = target_log_probs(hidden, weight, None, target_ids, tile_bytes=2**18).log_probs
    expected = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, target_ids[:, None])[:, 0]
    assert_close(found.detach().cpu(), expected.detach().cpu(), 1e-4, "log-probs")
    found_grad = torch.autograd.grad(found.sum(), weight)[0]
    assert_close(found_grad.cpu(), torch.autograd.grad(expected.sum(), weight)[0].cpu(), 1e-3, "gradient of the weight")
