"""The kernels for CUDA of packs and rings, run on the CPU: their operators' contract holds, and the numbers are right.

tests/models/test_gpu.py runs the same cases on a GPU.
"""

from __future__ import annotations

import pytest
import torch

from tests.cuda.cases import PACKED_MODELS, RAGGED, check_packed
from tests.cuda.varlen_on_cpu import varlen_on_cpu
from tests.models import ring_cases


@pytest.mark.parametrize("model", PACKED_MODELS)
def test_packed(model):
    is_known = PACKED_MODELS[model][2]
    with varlen_on_cpu() as calls:
        check_packed(model, "torch_varlen", "cpu")
    assert set(calls) == ({"forward", "backward"} if is_known else set())


@pytest.mark.parametrize("case", ring_cases.OF_CUDA)
def test_ring(two_ranks, case):
    is_known, options = ring_cases.OF_CUDA[case]
    for errors in two_ranks.run(ring_cases.errors_of_cuda_kernels, RAGGED, **options):
        calls = errors.pop("calls")
        assert set(calls) == ({"forward", "backward"} if is_known else set())
        assert max(errors.values()) <= 0.06, errors


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (dict(dtype=torch.float32), "fp16 and bf16"),
        (dict(head_size=12), "no multiple of 8"),
        (dict(head_size=264), "above 256"),
        (dict(borders=torch.int64), "int32"),
        (dict(longest=9), "longest sample 9"),
    ],
    ids=str,
)
def test_a_broken_contract_is_seen(fault, word):
    head_size, dtype = fault.get("head_size", 16), fault.get("dtype", torch.bfloat16)
    borders = torch.tensor([0, 3, 5], dtype=fault.get("borders", torch.int32))
    longest = fault.get("longest", 3)
    rows = torch.zeros(5, 2, head_size, dtype=dtype)
    with varlen_on_cpu(), pytest.raises(AssertionError, match=word):
        torch.ops.torch_attn._varlen_attn(rows, rows, rows, borders, borders, longest, longest)
