"""In a half-precision model the products are rounded, the softmax over them is not."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models.cpu_kernels import log_probs as cpu_log_probs
from openrlhf.models.head.log_prob_head import target_log_probs


@pytest.mark.parametrize("by", ["kernel", "torch"])
def test_the_sum_over_the_vocabulary_is_taken_in_float32(monkeypatch, by):
    if by == "torch":
        monkeypatch.setattr(cpu_log_probs, "_kernels", lambda dtype: None)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 8, generator=draw).bfloat16()
    weight = torch.randn(3000, 8, generator=draw).bfloat16()
    target_ids = torch.randint(0, 3000, (20,), generator=draw)
    rounded_logits = (hidden @ weight.T).double()
    expected = rounded_logits.log_softmax(-1).gather(1, target_ids[:, None])[:, 0]
    found = target_log_probs(hidden, weight, None, target_ids).log_probs
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
