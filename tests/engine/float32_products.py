"""Run as a program: the operators in float32, as on a processor without products of bfloat16, against float64.

Prints for each case a JSON line: its name, the greatest error in units of bfloat16's rounding, and what else is shown.
"""

from __future__ import annotations

import json
import sys

import torch
from torch.nn import functional

from openrlhf.engine.patches import float32_products

_ROUNDING = 2.0**-8  # of bfloat16, relative


def half(*shape):
    return torch.randn(*shape).bfloat16()


def error(found, *operands, compute=torch.matmul, **factors):
    """Of `found` against `compute` in float64, relative to the greatest number."""
    exact = compute(*(one.double() for one in operands), **factors)
    assert found.dtype == torch.bfloat16, found.dtype
    assert found.shape == exact.shape, found.shape
    return ((found.double() - exact).abs().max() / exact.abs().max() / _ROUNDING).item() if exact.numel() else 0.0


def products():
    left, right = half(33, 17), half(17, 9)
    yield "mm", error(torch.mm(left, right), left, right)
    yield "mm of transposed", error(right.t() @ left.t(), right.t(), left.t())
    yield "mm.out", error(torch.mm(left, right, out=half(33, 9)), left, right)
    yield "mm without rows", error(half(0, 17) @ right, half(0, 17), right)
    nothing = half(33, 0) @ half(0, 9)
    yield "mm of no terms", float(nothing.abs().max() + abs(nothing.numel() - 33 * 9))
    left, right = half(5, 6, 7), half(5, 7, 4)
    yield "bmm", error(torch.bmm(left, right), left, right)
    yield "bmm.out", error(torch.bmm(left, right, out=half(5, 6, 4)), left, right)


def sums():
    left, right, row, whole = half(33, 17), half(17, 9), half(9), half(33, 9)
    factors = {"beta": 0.5, "alpha": 2}
    sum_of = torch.addmm
    yield "addmm", error(torch.addmm(row, left, right, **factors), row, left, right, compute=sum_of, **factors)
    out = torch.addmm(whole, left, right, out=half(33, 9))
    yield "addmm.out", error(out, whole, left, right, compute=sum_of)
    into = torch.addmm(whole, left, right, out=(copy := whole.clone()))
    yield "addmm.out into the sum", error(into, whole, left, right, compute=sum_of) + (into is not copy)
    yield "addmm_", error(whole.clone().addmm_(left, right), whole, left, right, compute=sum_of)
    left, right, whole = half(5, 6, 7), half(5, 7, 4), half(5, 6, 4)
    yield "baddbmm", error(torch.baddbmm(whole, left, right), whole, left, right, compute=torch.baddbmm)
    yield "baddbmm_", error(whole.clone().baddbmm_(left, right), whole, left, right, compute=torch.baddbmm)


def gradients():
    def linear(*operands):
        return functional.linear(*operands).pow(2).sum()

    def attention(*operands, **how):
        return functional.scaled_dot_product_attention(*operands, **how).pow(2).sum()

    yield from gradients_of("linear", linear, half(3, 11, 16), half(8, 16), half(8))
    heads = [half(2, 3, 40, 16) for _ in range(3)]
    yield from gradients_of("attention", attention, *heads, is_causal=True)
    mask = torch.ones(40, 40).tril().bool()
    yield from gradients_of("attention with a mask", attention, *heads, attn_mask=mask)


def gradients_of(name, function, *operands, **how):
    leaves = [one.clone().requires_grad_() for one in operands]
    exact = [one.double().requires_grad_() for one in operands]
    found = torch.autograd.grad(function(*leaves, **how), leaves)
    expected = torch.autograd.grad(function(*exact, **how), exact)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        difference = (one.double() - other).norm() / other.norm() / _ROUNDING
        yield f"gradient {number} of {name}", difference.item()


def others():
    """1 where something differs."""
    left, right = torch.randn(33, 17), torch.randn(17, 9)
    yield "float32 is torch's", float(not torch.equal(left @ right, BEFORE["float32"]))
    yield "float16 is torch's", float(not torch.equal(left.half() @ right.half(), BEFORE["float16"]))
    try:
        left.bfloat16() @ right
    except RuntimeError as raised:
        yield "two types are refused", float("dtype" not in str(raised))
    else:
        yield "two types are refused", 1.0


def tell(cases, prefix=""):
    for name, found in cases:
        print(json.dumps({"case": prefix + name, "error": found}), flush=True)


def main():
    torch.set_num_threads(1)
    float32_products.has_bfloat16_products = lambda: False
    torch.manual_seed(1)
    left, right = torch.randn(33, 17), torch.randn(17, 9)
    BEFORE.update(float32=left @ right, float16=left.half() @ right.half())
    assert float32_products.multiply_in_float32()
    torch.manual_seed(1)
    tell(others())
    for part in (products, sums, gradients):
        tell(part())
    float32_products._PIECE_BYTES = 512  # a row or two
    for part in (products, sums):
        tell(part(), prefix="in pieces: ")


BEFORE = {}

if __name__ == "__main__":
    sys.exit(main())
