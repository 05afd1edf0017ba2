"""Our kernel for tiles of logits in bfloat16 and float32: the sums and gradients of torch in float64."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models.cpu_kernels import log_probs as cpu_log_probs
from openrlhf.models.head.log_prob_head import weighted_log_probs

NUM_ROWS = 21
pytestmark = pytest.mark.skipif(
    not cpu_log_probs.computes(torch.zeros(1, dtype=torch.bfloat16)), reason="no compiler: our kernels are not there"
)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def dtype(request):
    return request.param


def draw_logits(num_columns, dtype, spread=3.0):
    generator = torch.Generator().manual_seed(num_columns)
    logits = (spread * torch.randn(NUM_ROWS, num_columns, generator=generator)).to(dtype)
    target_ids = torch.randint(0, num_columns, (NUM_ROWS,), generator=generator)
    target_ids[:2] = torch.tensor([0, num_columns - 1])
    return logits, target_ids, torch.rand(NUM_ROWS, generator=generator) - 0.5


def fold_in_tiles(logits, target_ids, width):
    sums = cpu_log_probs.RunningStatistics(target_ids)
    for start in range(0, logits.shape[1], width):
        columns = slice(start, min(start + width, logits.shape[1]))
        sums.fold(slice(0, NUM_ROWS), columns, logits[:, columns].contiguous())
    return sums


@pytest.mark.parametrize("num_columns", [1, 15, 16, 17, 100, 4099])
@pytest.mark.parametrize("width", [7, 64, 5000])
def test_sums_however_the_tiles_fall(num_columns, width, dtype):
    logits, target_ids, _ = draw_logits(num_columns, dtype)
    sums = fold_in_tiles(logits, target_ids, width)
    torch.testing.assert_close(sums.log_sum_exp.double(), logits.double().logsumexp(1), atol=2e-6, rtol=2e-7)
    assert torch.equal(sums.target_logits, logits.float().gather(1, target_ids[:, None])[:, 0])


@pytest.mark.parametrize("num_columns", [1, 15, 16, 17, 100, 4099])
def test_gradients_are_rounded_once(num_columns, dtype):
    logits, target_ids, grads = draw_logits(num_columns, dtype)
    log_sum_exp = logits.double().logsumexp(1)
    softmax = (logits.double() - log_sum_exp.float().double()[:, None]).exp()
    exact = grads[:, None] * (torch.nn.functional.one_hot(target_ids, num_columns) - softmax)
    found = cpu_log_probs.gradient_(logits, log_sum_exp.float(), target_ids, slice(0, num_columns), grads).double()
    half_a_unit = exact.abs() * torch.finfo(dtype).eps / 2
    assert ((found - exact).abs() <= 1.01 * half_a_unit + 2e-6 * softmax).all()  # 2e-6: of the exponential


def test_a_tile_without_the_target(dtype):
    logits, target_ids, grads = draw_logits(64, dtype)
    softmax = (logits.double() - logits.double().logsumexp(1, keepdim=True)).exp()
    found = cpu_log_probs.gradient_(
        logits.clone(), logits.float().logsumexp(1), target_ids, slice(1000, 1064), grads
    ).double()
    torch.testing.assert_close(found, -grads[:, None] * softmax, atol=1e-7, rtol=torch.finfo(dtype).eps / 2 + 1e-6)


def test_huge_logits_stay_finite(dtype):
    logits, target_ids, grads = draw_logits(300, dtype, spread=1e4)
    sums = fold_in_tiles(logits, target_ids, 128)
    torch.testing.assert_close(sums.log_sum_exp.double(), logits.double().logsumexp(1), atol=0, rtol=1e-6)
    assert cpu_log_probs.gradient_(logits, sums.log_sum_exp, target_ids, slice(0, 300), grads).isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_not_hidden(value, dtype):
    logits, target_ids, _ = draw_logits(300, dtype)
    logits[3, 250] = value
    log_sum_exp = fold_in_tiles(logits, target_ids, 128).log_sum_exp
    assert log_sum_exp.isfinite().tolist() == [row != 3 for row in range(NUM_ROWS)]


def test_the_default_dtype_of_torch_changes_nothing(dtype):
    """The kernel writes float32, whatever a new tensor of torch's would hold."""
    logits, target_ids, _ = draw_logits(100, dtype)
    expected = fold_in_tiles(logits, target_ids, 64).log_sum_exp
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = fold_in_tiles(logits, target_ids, 64).log_sum_exp
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_the_head_gives_what_it_gives_without_the_kernel(monkeypatch, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(rows, 32, generator=generator).to(dtype).requires_grad_() for rows in (NUM_ROWS, 1_001)
    )
    target_ids, weights = torch.randint(0, 1_001, (NUM_ROWS,)), torch.rand(NUM_ROWS)

    def run():
        scores = weighted_log_probs(hidden, weight, None, target_ids, weights)
        return scores.log_probs, *torch.autograd.grad(scores.weighted_sum, (hidden, weight))

    by_kernel = run()
    monkeypatch.setattr(cpu_log_probs, "_kernels", lambda dtype: None)
    by_torch = run()
    torch.testing.assert_close(by_kernel[0], by_torch[0], atol=3e-6, rtol=0)
    for found, expected in zip(by_kernel[1:], by_torch[1:], strict=True):
        assert (found - expected).norm() < (0.002 if dtype == torch.bfloat16 else 1e-6) * expected.norm()
        assert found.dtype == dtype
