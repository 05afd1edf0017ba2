"""Causal attention of a pack in bfloat16 or float32 on the CPU (attention.cpp, attention_backward.cpp).

Where the processor has no products of bfloat16, bfloat16 is copied to float32, and the results are rounded.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from openrlhf.engine.processor import has_bfloat16_products
from openrlhf.models.cpu_kernels.compiled import DTYPE_NAMES, load_library

PromptOf = Sequence[int | None] | None

_LARGEST_HEAD_SIZE = 256
_LANES = 16  # numbers of the longest vector of the kernel


def computes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these, (heads, T, D) each, and this processor has what it needs."""
    head_size = query.shape[-1]
    fits = head_size % _LANES == 0 and head_size <= _LARGEST_HEAD_SIZE and value.shape[-1] == head_size
    is_contiguous = all(part.dtype == query.dtype and part.stride(-1) == 1 for part in (query, key, value))
    return fits and is_contiguous and query.dtype in DTYPE_NAMES and _kernels(_computed_in(query.dtype)) is not None


def forward(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float, prompt_of: PromptOf = None
) -> tuple[Tensor, Tensor]:
    """Args:
        query: (A, T, D); key and value: (K, T, D).
        lengths: tokens of each sample; they add up to T.
        prompt_of: for each sample the number of the one that it goes on from, and stands right behind; None: none does.

    Returns:
        The output, (A, T, D), whose storage is (T, A, D); and for `backward` the logarithms to the base 2 of the sums
        of each query's weights, (A, T) float32.
    """
    num_heads, num_tokens, head_size = query.shape
    dtype = _computed_in(query.dtype)
    inputs = [part.to(dtype) for part in (query, key, value)]
    output = torch.empty(num_tokens, num_heads, head_size, dtype=dtype).transpose(0, 1)
    log_sums = torch.empty(num_heads, num_tokens, dtype=torch.float32)
    tensors = map(_Tensor3.of, (*inputs, output))
    _kernels(dtype).forward(_Sizes.of(query, key, lengths, scale, prompt_of), *tensors, log_sums.data_ptr())
    return output.to(query.dtype), log_sums


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    lengths: Sequence[int],
    scale: float,
    prompt_of: PromptOf = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from that of the output, (A, T, D), and what `forward` returned."""
    dtype = _computed_in(query.dtype)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    inputs = [part.to(dtype) for part in (query, key, value, output, grad)]
    found = [torch.empty_like(part) for part in inputs[:3]]
    tensors, places = map(_Tensor3.of, inputs), map(_Tensor3.of, found)
    sizes = _Sizes.of(query, key, lengths, scale, prompt_of)
    _kernels(dtype).backward(sizes, *tensors, log_sums.data_ptr(), *places)
    query_grad, key_grad, value_grad = (part.to(query.dtype) for part in found)
    return query_grad, key_grad, value_grad


# --- what the kernel is given; the structures of attention_tasks.h


class _Tensor3(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("head_step", ctypes.c_int64), ("token_step", ctypes.c_int64))

    @classmethod
    def of(cls, tensor: Tensor) -> _Tensor3:
        """Of (heads, T, D)."""
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


class _Sizes(ctypes.Structure):
    _fields_ = (
        ("starts", ctypes.POINTER(ctypes.c_int64)),
        ("units", ctypes.POINTER(ctypes.c_int64)),
        ("num_units", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_key_heads", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("num_threads", ctypes.c_int),
    )

    @classmethod
    def of(cls, query: Tensor, key: Tensor, lengths: Sequence[int], scale: float, prompt_of: PromptOf) -> _Sizes:
        starts = (ctypes.c_int64 * (len(lengths) + 1))(0, *accumulate(lengths))
        first_samples = _first_samples_of_units(prompt_of or [None] * len(lengths))
        units = (ctypes.c_int64 * (len(first_samples) + 1))(*first_samples, len(lengths))
        num_heads, num_tokens, head_size = query.shape
        assert starts[-1] == num_tokens
        heads = num_heads, key.shape[0]
        return cls(starts, units, len(first_samples), *heads, num_tokens, head_size, scale, torch.get_num_threads())


def _first_samples_of_units(prompt_of: Sequence[int | None]) -> list[int]:
    """A unit is a sample, or a prompt and the samples that go on from it."""
    first_samples: list[int] = []
    for number, prompt in enumerate(prompt_of):
        if prompt is None:
            first_samples.append(number)
        assert prompt is None or prompt == first_samples[-1], "samples stand right behind their prompt"
    return first_samples


# --- the library


class _AttentionKernels(NamedTuple):
    """Of one kind of numbers."""

    forward: Any
    backward: Any


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return dtype if has_bfloat16_products() else torch.float32


@functools.cache
def _kernels(dtype: torch.dtype) -> Any:
    """`_AttentionKernels`; None where there is no library, or its products do not work here: ask `computes` first."""
    library, name = load_library(), DTYPE_NAMES[dtype]
    if library is None or not getattr(library, f"attention_works_in_{name}")():
        return None
    forward, backward = (getattr(library, f"attention_{way}_in_{name}") for way in ("forward", "backward"))
    sizes, tensor, floats = ctypes.POINTER(_Sizes), ctypes.POINTER(_Tensor3), ctypes.c_void_p
    forward.argtypes = (sizes, *[tensor] * 4, floats)
    backward.argtypes = (sizes, *[tensor] * 5, floats, *[tensor] * 3)
    forward.restype = backward.restype = None
    return _AttentionKernels(forward, backward)
