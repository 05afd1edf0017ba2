"""Memory on the CPU that a save copies to: allocated once and kept, as new memory takes longer than the copying."""

from __future__ import annotations

import weakref
from contextlib import suppress

import torch
from torch import Tensor

_ALIGNMENT_BYTES = 64


class HostBuffer:
    """Copies of tensors, on the CPU, that stay as they are until `reset`."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used_bytes = 0
        self._was_pin_tried = False
        self._unpin: weakref.finalize | None = None

    def new_bytes_for(self, capacity_bytes: int) -> int:
        """The memory that `reset` would take beyond what the buffer holds."""
        return max(0, capacity_bytes - len(self._memory))

    def reset(self, capacity_bytes: int) -> None:
        """Discard all copies and make room for `capacity_bytes` of new ones. The buffer grows and never shrinks."""
        self._used_bytes = 0
        if len(self._memory) < capacity_bytes:
            self.free()  # the old memory, before the new is taken
            self._memory = torch.empty(capacity_bytes, dtype=torch.uint8)

    def copy_of(self, tensor: Tensor) -> Tensor:
        """A copy of the same shape and dtype. It has memory of its own where the buffer is full."""
        size_bytes = tensor.numel() * tensor.element_size()
        begin = self._used_bytes
        if begin + size_bytes > len(self._memory):
            return tensor.detach().to("cpu", copy=True)
        if tensor.is_cuda and not self._was_pin_tried:
            self._pin()
        self._used_bytes += -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        copy = self._memory[begin : begin + size_bytes].view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor.detach())

    def free(self) -> None:
        """Gives the memory back, and all copies with it."""
        if self._unpin is not None:
            self._unpin()
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._was_pin_tried, self._unpin = False, None

    def _pin(self) -> None:
        """A GPU writes to pinned memory by itself, several times as fast; elsewhere the CPU copies once more.

        The buffer's own memory is pinned: torch rounds pinned memory that it allocates up to a power of two. Where the
        system refuses, the copies are the same, and slower.
        """
        self._was_pin_tried = True
        place = self._memory.data_ptr()
        if int(torch.cuda.cudart().cudaHostRegister(place, len(self._memory), 0)) == 0:
            # before the memory goes, however it goes: what comes to its place later would count as pinned
            self._unpin = weakref.finalize(self, torch.cuda.cudart().cudaHostUnregister, place)
            self._unpin.atexit = False  # the process gives all of it back
            return
        with suppress(RuntimeError):  # takes up the error, which the next kernel would raise otherwise
            torch.ones(1, device="cuda")


class LiveTensors(HostBuffer):
    """No copies: the tensors themselves, for a save that is written while training waits. It takes no memory."""

    def reset(self, capacity_bytes: int) -> None:
        pass

    def copy_of(self, tensor: Tensor) -> Tensor:
        return tensor.detach()
