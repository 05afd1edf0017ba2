"""Memory on the CPU that a save copies to: allocated once and kept, as new memory takes longer than the copying."""

import torch
from torch import Tensor

_ALIGNMENT_BYTES = 64


class HostBuffer:
    """Copies of tensors, on the CPU, that stay as they are until `reset`."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used_bytes = 0

    def reset(self, capacity_bytes: int) -> None:
        """Discard all copies and make room for `capacity_bytes` of new ones. The buffer grows and never shrinks."""
        self._used_bytes = 0
        if len(self._memory) < capacity_bytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # frees the old memory before the new is taken
            self._memory = torch.empty(capacity_bytes, dtype=torch.uint8)

    def copy_of(self, tensor: Tensor) -> Tensor:
        """A copy of the same shape and dtype. It has memory of its own where the buffer is full."""
        size_bytes = tensor.numel() * tensor.element_size()
        begin = self._used_bytes
        if begin + size_bytes > len(self._memory):
            return tensor.detach().to("cpu", copy=True)
        self._used_bytes += -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        copy = self._memory[begin : begin + size_bytes].view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor.detach())
