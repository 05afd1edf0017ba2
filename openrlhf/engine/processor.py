"""What a processor makes of matrix products in half precision: some are slower at them than in float32."""

from __future__ import annotations

import platform
import time

import torch

_SIZE = 512  # of square matrices: large enough for the rate, small enough for a few products in the time
_SECONDS = 0.025  # for each dtype
_WORTH_SAYING = 1.1


def has_bfloat16_products() -> bool:
    """Whether the processor has an instruction for them, or is of another family, where torch has other kernels."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return not is_x86 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def faster_in_float32() -> str:
    """The finding, for a run in bf16 on the CPU; '' where bf16 is as fast. It takes 50 ms and a first product each."""
    in_bf16, in_float32 = (flops_per_second(dtype) for dtype in (torch.bfloat16, torch.float32))
    if in_float32 < _WORTH_SAYING * in_bf16:
        return ""
    return (
        f"float32 products are faster on this processor ({in_float32 / 1e9:,.0f} GFLOP/s against "
        f"{in_bf16 / 1e9:,.0f}): --ds.param_dtype fp32 takes less time and more memory"
    )


def flops_per_second(dtype: torch.dtype) -> float:
    """Of matrix products on the CPU, by the threads that torch uses."""
    left, right = (torch.ones(_SIZE, _SIZE, dtype=dtype) for _ in range(2))
    torch.mm(left, right)  # compiles its code
    began_at, num_products = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began_at) < _SECONDS:
        torch.mm(left, right)
        num_products += 1
    return num_products * 2 * _SIZE**3 / seconds
