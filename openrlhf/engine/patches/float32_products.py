"""Products of bfloat16 matrices made in float32, on processors that have no instruction for them.

Reason: there torch multiplies matrices of bfloat16 by plain loops, 45 to 500 times slower than matrices of float32 (see
upstream), so that a laptop would need a day for an hour's training.

Change: torch's kernels for the CPU of `mm`, `addmm`, `bmm` and `baddbmm`, and of the gradient of flash attention. They
copy bfloat16 to float32, piece by piece, for torch's own kernel, and round its result. torch sums in float32 either
way, so results differ by the order of the sums alone. Other numbers go to torch's kernels as they are.

Upstream: https://github.com/pytorch/pytorch/issues/146508
Another version of torch: applied; the operators' arguments are public.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library, nn

from openrlhf.engine.patches.patch import Patch
from openrlhf.engine.processor import has_bfloat16_products

PATCH = Patch("float32_products", "torch", "2", applies_to_others=True, without_it="bf16 is slow on this processor")
_PIECE_BYTES = 16 * 2**20  # of float32 numbers that are held at once, beside a right-hand side

Function = Callable[..., Any]
_libraries: list[library.Library] = []  # a library that nobody holds takes its kernels along


def multiply_fast(model: nn.Module) -> None:
    """To be called for each model that computes: one of bfloat16 on the CPU changes torch, once in a process."""
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.dtype == torch.bfloat16 and not torch.cuda.is_available():
        multiply_in_float32()


@functools.cache
def multiply_in_float32() -> bool:
    """Whether this process does, from now on: not where the processor has products of bfloat16."""
    if has_bfloat16_products() or not PATCH.is_on():
        return False
    for name, num_operands in (("mm", 2), ("bmm", 2), ("addmm", 3), ("baddbmm", 3)):
        multiply = functools.partial(_multiply, _kernel_of(name))
        _replace(name, num_operands, multiply)
        _replace(f"{name}.out", num_operands, multiply)
    for name in ("addmm", "baddbmm"):
        _replace(f"{name}_", 3, functools.partial(_add_product, _kernel_of(name)))
    attention = "_scaled_dot_product_flash_attention_for_cpu_backward"
    _replace(attention, 5, functools.partial(_attention_gradient, _kernel_of(attention)))
    return True


@functools.cache
def _kernel_of(name: str) -> Function:
    """torch's own; asked for before it is replaced."""
    return library.get_kernel(f"aten::{name}", "CPU").call_boxed


def _replace(name: str, num_operands: int, in_float32: Function) -> None:
    """Puts `in_float32` in the place of torch's kernel, for calls whose first tensors, and `out`, are of bfloat16."""
    as_torch = _kernel_of(name)

    def kernel(keys: Any, *arguments: Any, **named: Any) -> Any:
        operands = [*arguments[:num_operands], named.get("out", arguments[0])]
        run = in_float32 if all(one.dtype == torch.bfloat16 for one in operands) else as_torch
        return run(keys, *arguments, **named)

    replacing = library.Library("aten", "IMPL")
    _libraries.append(replacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch tells that a kernel is replaced
        replacing.impl(name, kernel, "CPU", with_keyset=True, allow_override=True)


# --- the operators; `call` is torch's own kernel, `keys` what torch hands on to it


def _multiply(call: Function, keys: Any, *operands: Tensor, out: Tensor | None = None, **factors: float) -> Tensor:
    """Args: operands: left (..., M, K) and right (..., K, N), with or without a dimension of batches; before them, for
    the operators that add it, a tensor that extends to (..., M, N).
    """
    *added, left, right = operands
    shape = (*left.shape[:-1], right.shape[-1])
    result = left.new_empty(shape) if out is None else out.resize_(shape)
    added = [one.expand(shape) for one in added]
    is_batched = left.ndim == 3
    rights = right if is_batched else right.float()
    numbers = (left.numel() + result.numel() + is_batched * right.numel()) // max(1, len(left))
    step = max(1, _PIECE_BYTES // (4 * max(1, numbers)))
    for first in range(0, len(left), step):
        piece = slice(first, first + step)
        exact = [one[piece].float() for one in (*added, left)]
        result[piece] = call(keys, *exact, rights[piece].float() if is_batched else rights, **factors)
    return result


def _add_product(call: Function, keys: Any, total: Tensor, *operands: Tensor, **factors: float) -> Tensor:
    return _multiply(call, keys, total, *operands, out=total, **factors)


def _attention_gradient(call: Function, keys: Any, *arguments: Any, **named: Any) -> tuple[Tensor, ...]:
    exact = [one.float() if isinstance(one, Tensor) else one for one in arguments]
    if isinstance(mask := named.get("attn_mask"), Tensor) and mask.dtype == torch.bfloat16:
        named["attn_mask"] = mask.float()
    return tuple(gradient.to(torch.bfloat16) for gradient in call(keys, *exact, **named))
