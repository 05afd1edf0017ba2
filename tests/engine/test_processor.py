"""What is said of a processor's half precision."""

from types import SimpleNamespace

import pytest
import torch

from openrlhf.engine import processor


@pytest.fixture
def rates(monkeypatch):
    """A processor of such rates, in FLOP/s."""

    def with_rates(in_bf16, in_float32):
        of = {torch.bfloat16: in_bf16, torch.float32: in_float32}
        monkeypatch.setattr(processor, "flops_per_second", of.__getitem__)

    return with_rates


def test_slow_half_precision_is_told_with_both_rates(rates):
    rates(in_bf16=152e9, in_float32=286e9)
    assert "(286 GFLOP/s against 152): --ds.param_dtype fp32" in processor.faster_in_float32()


@pytest.mark.parametrize("in_float32", [80e9, 152e9, 160e9])
def test_nothing_is_said_where_half_precision_is_about_as_fast(rates, in_float32):
    rates(152e9, in_float32)
    assert processor.faster_in_float32() == ""


def test_a_rate_is_that_of_products_after_the_first(monkeypatch):
    now = [0.0]

    def product(left, right):
        now[0] += 0.002 if now[0] else 1.0  # the first one compiles
        return left

    monkeypatch.setattr(processor, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(torch, "mm", product)
    assert processor.flops_per_second(torch.float32) == pytest.approx(2 * 512**3 / 0.002)
    assert now[0] < 1.05


def test_products_are_measured_here():
    assert all(processor.flops_per_second(dtype) > 0 for dtype in (torch.bfloat16, torch.float32))
