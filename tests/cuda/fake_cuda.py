"""CUDA tensors without numbers and without CUDA: what mixes devices, or makes the host wait for the device, raises.

    with fake_cuda():
        ...         # new tensors have shapes alone; `device="cuda"` is a device as on a GPU machine

Autograd's engine needs a device of its own: backward functions are called directly.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
"""
_READS_NUMBERS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_aten = torch.ops.aten
_real_tensor = torch.tensor


class HostWaitsError(AssertionError):
    """On a GPU the host would wait here until the device has done all work before."""


@contextmanager
def fake_cuda() -> Iterator[None]:
    _load_guard()
    with FakeTensorMode(allow_non_fake_inputs=True), _NoWaits(), patch.object(torch, "tensor", _tensor):
        yield


def _tensor(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    if device is not None and torch.device(device).type == "cuda":
        raise HostWaitsError(f"torch.tensor{args} goes to the device from pageable memory")
    return _real_tensor(*args, device=device, **kwargs)


def move_parameters(model: nn.Module) -> None:
    """Makes parameters and buffers of a real model tensors of `fake_cuda`, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty(parameter.shape, dtype=parameter.dtype, device=CUDA)
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _like(buffer)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)


class _NoWaits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._page_locked: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _aten._pin_memory.default:
            self._page_locked.append(args[0].clone())
            return self._page_locked[-1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type == "cuda" for tensor in tensors) and _reads_numbers(func, args):
            raise HostWaitsError(f"{func} reads numbers of the device")
        is_of_host = bool(tensors) and not any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if is_of_host and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            with unset_fake_temporarily():  # numbers of the host are real
                return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in (_aten._to_copy.default, _aten.copy_.default):
            source = args[func is _aten.copy_.default]
            self._check_copy(source, result, kwargs.get("non_blocking", False) or True in args[2:])
        return result

    def _check_copy(self, source: Tensor, copy: Tensor, non_blocking: bool) -> None:
        if source.device.type == "cuda" and copy.device.type == "cpu":
            raise HostWaitsError(f"a tensor {tuple(source.shape)} is copied to the host")
        is_page_locked = any(source is tensor for tensor in self._page_locked)
        if source.device.type == "cpu" and copy.device.type == "cuda" and not (is_page_locked and non_blocking):
            raise HostWaitsError(f"a tensor {tuple(source.shape)} is copied to the device from pageable memory")


def _reads_numbers(func: Any, args: tuple[Any, ...]) -> bool:
    if func in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default):
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
    return any(tag in func.tags for tag in _READS_NUMBERS)


@functools.cache
def _load_guard() -> None:
    """Where there is no GPU, torch wants to know who switches devices: nobody."""
    if torch.cuda.is_available():
        return
    torch_folder, folder = Path(torch.__file__).parent, Path(tempfile.mkdtemp())
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(_GUARD, encoding="utf-8")
    flags = ["-std=c++20", "-fPIC", "-shared", f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-lc10"]
    subprocess.run(["g++", str(source), *flags, "-o", str(library)], check=True)
    ctypes.CDLL(str(library))
