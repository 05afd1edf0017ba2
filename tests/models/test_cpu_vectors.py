"""Vectors of numbers (vectors.h), with this processor's instructions and without its own rounding to bfloat16."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from openrlhf.models import cpu_kernels

COMPILER = shlex.split(os.environ.get("CXX", "g++"))
ONLY_GENERIC = ("-U__AVX512BF16__", "-U__AVX512F__", "-D__has_builtin(name)=0", "-Wno-builtin-macro-redefined")
SOURCE = """
#include "vectors.h"
extern "C" void round_all(const float* from, Half* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, rounded(load(from + i)));
}
extern "C" void powers_of_2(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, power_of_2(load(from + i)));
}
extern "C" void pair_all(const float* from, uint32_t* to, int64_t count) {  // each number with half of it
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats numbers = load(from + i);
    *reinterpret_cast<Words*>(to + i) = pairs_of(rounded(numbers), rounded(numbers * 0.5f));
  }
}
"""


@pytest.fixture(scope="module", params=["native", "generic"])
def library(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    source, compiled = folder / "vectors.cpp", folder / "vectors.so"
    source.write_text(SOURCE)
    flags = ["-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", f"-I{Path(cpu_kernels.__file__).parent}"]
    undone = ONLY_GENERIC if request.param == "generic" else ()
    subprocess.run([*COMPILER, *flags, *undone, str(source), "-o", str(compiled)], check=True)
    return ctypes.CDLL(str(compiled))


def call(function, numbers, dtype):
    found = torch.empty(numbers.shape, dtype=dtype)
    count = ctypes.c_int64(numbers.numel())
    function(ctypes.c_void_p(numbers.data_ptr()), ctypes.c_void_p(found.data_ptr()), count)
    return found


def numbers_of(bits):
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)


def test_rounding(library):
    """To nearest, ties to even, as torch does; what is no number stays so, whatever bits say it."""
    tails = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    heads = [0x0000, 0x0080, 0x3F80, 0x3F81, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF]
    bits = [sign << 31 | head << 16 | tail for sign in (0, 1) for head in heads for tail in tails]
    bits = [one for one in bits if one & 0x7FFFFFFF == 0 or one & 0x7F800000]  # none between zero and 2^-126
    numbers = numbers_of([one - (one >> 31 << 32) for one in bits + bits[: -len(bits) % 16]])
    found, meant = call(library.round_all, numbers, torch.bfloat16), numbers.bfloat16()
    assert torch.equal(found.isnan(), meant.isnan())
    assert torch.equal(found[~meant.isnan()].view(torch.int16), meant[~meant.isnan()].view(torch.int16))


def test_powers_of_2(library):
    exponents = torch.cat([torch.linspace(-126, 8, 1_600_000), torch.arange(-126.0, 2)])
    found = call(library.powers_of_2, exponents, torch.float32).double()
    exact = exponents.double().exp2()
    assert ((found - exact).abs() / exact).max() < 1e-7
    assert torch.equal(found[1_600_000:], exact[1_600_000:]), "of a whole number it is exact"
    ends = torch.tensor([torch.nan, -torch.inf, -127.0, -1e30]).repeat(4)
    assert call(library.powers_of_2, ends, torch.float32)[1:4].tolist() == [2.0**-126] * 3
    assert call(library.powers_of_2, ends, torch.float32)[0].isnan()


def test_pairs(library):
    numbers = torch.arange(1.0, 33.0)
    found = call(library.pair_all, numbers, torch.int32).view(torch.bfloat16).view(-1, 2)
    assert torch.equal(found, torch.stack([numbers, numbers / 2], 1).bfloat16())
