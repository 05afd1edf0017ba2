"""One tile of logits in bfloat16 or float32 on the CPU (log_probs.cpp): its part of each target's statistics, and its
gradient.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from openrlhf.models.cpu_kernels.compiled import DTYPE_NAMES, load_library


def computes(logits: Tensor) -> bool:
    """Whether the kernel takes logits of this kind."""
    is_known = logits.device.type == "cpu" and logits.dtype in DTYPE_NAMES
    return is_known and _kernels(logits.dtype) is not None


class RunningStatistics:
    """Running sums of N rows over the columns folded in so far; all (N,) float32. They come in ascending order."""

    def __init__(self, target_ids: Tensor, with_entropy: bool = False):
        self._target_ids = target_ids.contiguous()
        self._tops = torch.full(target_ids.shape, -torch.inf, dtype=torch.float32)
        self._sums, self._moments, self.target_logits = torch.zeros(3, *target_ids.shape, dtype=torch.float32)
        self._with_entropy = with_entropy
        self.is_likeliest = torch.zeros(target_ids.shape, dtype=torch.bool)

    @property
    def log_sum_exp(self) -> Tensor:
        return self._tops + self._sums.log()

    @property
    def entropy(self) -> Tensor | None:
        """In nats; None if not asked for."""
        return self._sums.log() - self._moments / self._sums if self._with_entropy else None

    def fold(self, rows: slice, columns: slice, logits: Tensor) -> None:
        """Args: logits: (rows, columns); left as they are."""
        parts = (self._tops, self._sums, self._moments, self.target_logits, self.is_likeliest)
        tops, sums, moments, target_logits, is_likeliest = (part[rows].data_ptr() for part in parts)
        running = _Running(tops, sums, moments if self._with_entropy else None, target_logits, is_likeliest)
        _kernels(logits.dtype).fold(_Tile.of(logits, self._target_ids[rows], columns), running)


def gradient_(logits: Tensor, log_sum_exp: Tensor, target_ids: Tensor, columns: slice, grads: Tensor) -> Tensor:
    """Puts grads * (1[target] - softmax) in the place of `logits`, (rows, columns).

    Args:
        log_sum_exp, target_ids, grads: (rows,).
    """
    sums, grads = (part.float().contiguous() for part in (log_sum_exp, grads))
    target_ids = target_ids.contiguous()  # held until the kernel has read it
    _kernels(logits.dtype).gradient(_Tile.of(logits, target_ids, columns), sums.data_ptr(), grads.data_ptr())
    return logits


class _Tile(ctypes.Structure):
    """That of log_probs.cpp."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("target_ids", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("first_column", ctypes.c_int64),
        ("num_threads", ctypes.c_int),
    )

    @classmethod
    def of(cls, logits: Tensor, target_ids: Tensor, columns: slice) -> _Tile:
        assert logits.is_contiguous()
        assert target_ids.is_contiguous()
        assert target_ids.dtype == torch.int64
        return cls(logits.data_ptr(), target_ids.data_ptr(), *logits.shape, columns.start, torch.get_num_threads())


class _Running(ctypes.Structure):
    """That of log_probs.cpp."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("tops", "sums", "moments", "target_logits", "is_likeliest"))


class _LogProbKernels(NamedTuple):
    """Of one kind of numbers."""

    fold: Any
    gradient: Any


@functools.cache
def _kernels(dtype: torch.dtype) -> Any:
    """`_LogProbKernels`; None where there is no library: ask `computes` first."""
    library, name = load_library(), DTYPE_NAMES[dtype]
    if library is None:
        return None
    fold, gradient = (getattr(library, f"log_probs_{work}_in_{name}") for work in ("fold", "gradient"))
    tile, floats = ctypes.POINTER(_Tile), ctypes.c_void_p
    fold.argtypes, gradient.argtypes = (tile, ctypes.POINTER(_Running)), (tile, floats, floats)
    fold.restype = gradient.restype = None
    return _LogProbKernels(fold, gradient)
