"""One tile of logits in bfloat16 on the CPU: its part of the log-sum-exp, and its gradient (log_probs.cpp)."""

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


class RunningSums:
    """Log-sum-exp and target logits of N rows, as tiles are folded in. All (N,) float32."""

    def __init__(self, target_ids: Tensor):
        self._target_ids = target_ids
        self._tops = torch.full(target_ids.shape, -torch.inf, dtype=torch.float32)
        self._sums, self.target_logits = torch.zeros(2, *target_ids.shape, dtype=torch.float32)

    @property
    def log_sum_exp(self) -> Tensor:
        return self._tops + self._sums.log()

    def fold(self, rows: slice, columns: slice, logits: Tensor) -> None:
        """Args: logits: (rows, columns); left as they are."""
        floats = (part[rows].data_ptr() for part in (self._tops, self._sums, self.target_logits))
        _library().log_probs_fold(_Tile.of(logits, self._target_ids[rows], columns), *floats)


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


@functools.cache
def _library() -> Any:
    """None where there is none: ask `computes` first."""
    library = load_library()
    if library is not None:
        tile, floats = ctypes.POINTER(_Tile), ctypes.c_void_p
        library.log_probs_fold.argtypes = (tile, floats, floats, floats)
        library.log_probs_gradient.argtypes = (tile, floats, floats)
        library.log_probs_fold.restype = library.log_probs_gradient.restype = None
    return library
