"""Memory for the copy that a save writes from: taken once and kept, as fresh memory takes longer than the copying."""

import torch
from torch import Tensor

_ALIGNMENT_BYTES = 64


class CopyRoom:
    """Copies of tensors, on the CPU, that stand until `clear`."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used_bytes = 0

    def clear(self, needed_bytes: int) -> None:
        """Gives up all copies, and makes sure of room for `needed_bytes` of new ones, padding left out."""
        self._used_bytes = 0
        if len(self._memory) < needed_bytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # before there is twice as much
            self._memory = torch.empty(needed_bytes, dtype=torch.uint8)

    def copy_of(self, tensor: Tensor) -> Tensor:
        """A copy of the same shape and dtype; in memory of its own where the room does not suffice."""
        size_bytes = tensor.numel() * tensor.element_size()
        begin = self._used_bytes
        if begin + size_bytes > len(self._memory):
            return tensor.detach().to("cpu", copy=True)
        self._used_bytes += -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        copy = self._memory[begin : begin + size_bytes].view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor.detach())
