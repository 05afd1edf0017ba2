"""One tile of logits in bfloat16 on the CPU: its part of each target's statistics, and its gradient (log_probs.cpp)."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from openrlhf.models.cpu_kernels.compiled import load_library


def computes(logits: Tensor) -> bool:
    """Whether the kernel takes logits of this kind."""
    return logits.device.type == "cpu" and logits.dtype == torch.bfloat16 and _library() is not None


class RunningStatistics:
    """Running sums of N rows over the columns folded in so far; all (N,) float32. They come in ascending order."""

    def __init__(self, target_ids: Tensor, with_entropy: bool = False):
        self._target_ids = target_ids
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
        _library().log_probs_fold(_Tile.of(logits, self._target_ids[rows], columns), running)


def gradient_(logits: Tensor, log_sum_exp: Tensor, target_ids: Tensor, columns: slice, grads: Tensor) -> Tensor:
    """Puts grads * (1[target] - softmax) in the place of `logits`, (rows, columns).

    Args:
        log_sum_exp, target_ids, grads: (rows,).
    """
    sums, grads = (part.float().contiguous() for part in (log_sum_exp, grads))
    _library().log_probs_gradient(_Tile.of(logits, target_ids, columns), sums.data_ptr(), grads.data_ptr())
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


@functools.cache
def _library() -> Any:
    """None where there is none: ask `computes` first."""
    library = load_library()
    if library is not None:
        tile, floats = ctypes.POINTER(_Tile), ctypes.c_void_p
        library.log_probs_fold.argtypes = (tile, ctypes.POINTER(_Running))
        library.log_probs_gradient.argtypes = (tile, floats, floats)
        library.log_probs_fold.restype = library.log_probs_gradient.restype = None
    return library
