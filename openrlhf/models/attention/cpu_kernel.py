"""Our kernel of causal attention in bfloat16 on the CPU (cpu_kernel.cpp), compiled on first use in a few seconds."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import subprocess
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from openrlhf.utils.build_folder import sole_builder

_SOURCE = Path(__file__).with_suffix(".cpp")
_TORCH = Path(torch.__file__).parent
# Not -ffast-math: a score that is not a number must stay one. OpenMP is not linked: torch's own runs the threads.
_COMPILE = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_LINK = ("-shared", f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10")
_LARGEST_HEAD_SIZE = 256
_LANES = 16  # numbers of a vector of the kernel

log = logging.getLogger(__name__)


def computes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these, (heads, T, D) each, and this processor has what it needs."""
    head_size = query.shape[-1]
    fits = head_size % _LANES == 0 and head_size <= _LARGEST_HEAD_SIZE and value.shape[-1] == head_size
    is_half = all(part.dtype == torch.bfloat16 and part.stride(-1) == 1 for part in (query, key, value))
    return fits and is_half and _library() is not None


def forward(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """Args:
        query: (A, T, D); key and value: (K, T, D).
        lengths: tokens of each sample; they add up to T.

    Returns:
        The output, (A, T, D), whose storage is (T, A, D), and for `backward` the logarithms to the base 2 of the sums of
        each query's weights, (A, T) float32.
    """
    num_heads, num_tokens, head_size = query.shape
    output = query.new_empty(num_tokens, num_heads, head_size).transpose(0, 1)
    log_sums = torch.empty(num_heads, num_tokens)
    tensors = map(_Tensor3.of, (query, key, value, output))
    _kernel().forward(_Sizes.of(query, key, lengths, scale), *tensors, log_sums.data_ptr())
    return output, log_sums


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    lengths: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from that of the output, (A, T, D), and what `forward` returned."""
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    grad_query = torch.empty_like(query)
    by_query_head = [torch.empty(query.shape) for _ in range(2)]  # float32, contiguous
    tensors = map(_Tensor3.of, (query, key, value, output, grad))
    places = (_Tensor3.of(grad_query), *(part.data_ptr() for part in by_query_head))
    _kernel().backward(_Sizes.of(query, key, lengths, scale), *tensors, log_sums.data_ptr(), *places)
    grad_key, grad_value = (part.unflatten(0, (key.shape[0], -1)).sum(1).to(key.dtype) for part in by_query_head)
    return grad_query, grad_key, grad_value


# --- what the kernel is given; the structures of cpu_kernel.cpp


class _Tensor3(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("head_step", ctypes.c_int64), ("token_step", ctypes.c_int64))

    @classmethod
    def of(cls, tensor: Tensor) -> _Tensor3:
        """Of (heads, T, D)."""
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


class _Sizes(ctypes.Structure):
    _fields_ = (
        ("starts", ctypes.POINTER(ctypes.c_int64)),
        ("num_samples", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_key_heads", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("num_threads", ctypes.c_int),
    )

    @classmethod
    def of(cls, query: Tensor, key: Tensor, lengths: list[int], scale: float) -> _Sizes:
        starts = (ctypes.c_int64 * (len(lengths) + 1))(0, *accumulate(lengths))
        num_heads, num_tokens, head_size = query.shape
        assert starts[-1] == num_tokens
        num_threads = torch.get_num_threads()
        return cls(starts, len(lengths), num_heads, key.shape[0], num_tokens, head_size, scale, num_threads)


# --- compiling


def _kernel() -> ctypes.CDLL:
    library = _library()
    assert library is not None, "ask computes() first"
    return library


@functools.cache
def _library() -> ctypes.CDLL | None:
    """None where it cannot be compiled, which is said once, or where the processor has no products of bfloat16."""
    if not _has_bfloat16_products():
        return None
    try:
        library = _with_types(ctypes.CDLL(str(_compiled())))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("attention on this CPU runs by torch's slower kernel, as ours could not be compiled: %s", reason)
        return None
    return library if library.is_supported() else None


def _with_types(library: ctypes.CDLL) -> ctypes.CDLL:
    sizes, tensor, floats = ctypes.POINTER(_Sizes), ctypes.POINTER(_Tensor3), ctypes.c_void_p
    library.forward.argtypes = (sizes, *[tensor] * 4, floats)
    library.backward.argtypes = (sizes, *[tensor] * 5, floats, tensor, floats, floats)
    library.forward.restype = library.backward.restype = None
    return library


def _has_bfloat16_products() -> bool:
    return bool({"avx512_bf16", "amx_bf16"} & _processor_features())


@functools.cache
def _processor_features() -> frozenset[str]:
    """As Linux lists them for the first core; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def _compiled() -> Path:
    """The library's file. Its name tells the source, torch and the processor it was made of and for."""
    made_of = [_SOURCE.read_text(), torch.__version__, " ".join(sorted(_processor_features())), *_COMPILE]
    name = f"cpu_attention_{hashlib.blake2b(' '.join(made_of).encode(), digest_size=8).hexdigest()}"
    with sole_builder() as folder:
        library = folder / f"{name}.so"
        if not library.is_file():
            print(f"compiling our attention for this processor (once; a few seconds) in {folder}", flush=True)
            compiler, objects, unfinished = os.environ.get("CXX", "g++"), folder / f"{name}.o", folder / f"{name}.part"
            _run(compiler, *_COMPILE, f"-I{_TORCH / 'include'}", "-c", str(_SOURCE), "-o", str(objects))
            _run(compiler, str(objects), *_LINK, "-o", str(unfinished))
            objects.unlink()
            unfinished.replace(library)
    return library


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
