"""The CUDA back ends against plain transformers in float64 on the CPU; two ranks share one GPU over gloo."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.cases import PACKED_MODELS, RAGGED, check_packed
from tests.models import ring_cases
from tests.models.batches import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", ["torch_varlen", "per_sample"])
@pytest.mark.parametrize("model", PACKED_MODELS)
def test_packed_back_ends(model, name):
    check_packed(model, name, "cuda")


@pytest.mark.parametrize("case", ring_cases.OF_CUDA)
def test_ring_of_two_ranks_on_one_gpu(two_ranks, case):
    _, options = ring_cases.OF_CUDA[case]
    options = {"dtype": torch.bfloat16, **options}
    tolerance = 1e-4 if options["dtype"] == torch.float32 else 0.06
    for errors in two_ranks.run(ring_cases.attention_errors, RAGGED, device="cuda", **options):
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
