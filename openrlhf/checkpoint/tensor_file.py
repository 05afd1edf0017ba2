"""Writing tensors as safetensors in one stream: checksummed on the way, flushed, without a second copy."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from openrlhf.checkpoint.manifest import FileRecord, new_checksum

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_HEADER_ALIGNMENT_BYTES = 8


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    at_half: Callable[[], None] = lambda: None,
    before_flush: Callable[[], None] = lambda: None,
) -> FileRecord:
    """Write a safetensors file and flush it to disk.

    Args:
        tensors: on the CPU, any shape; a view is written as its own elements.
        metadata: strings kept in the header.
        at_half, before_flush: called when half of the tensors are written, and when all are but not yet on
        the disk.

    Returns: the file's record, with the checksum of the bytes that were meant to be written.
    """
    checksum = new_checksum()
    with open(path, "wb") as file:

        def write(data: bytes | memoryview) -> None:
            checksum.update(data)
            file.write(data)

        write(_header(tensors, metadata))
        for index, tensor in enumerate(tensors.values()):
            if index == (len(tensors) + 1) // 2:
                file.flush()
                at_half()
            write(_bytes_of(tensor))
        size_bytes = file.tell()
        before_flush()
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(path.name, size_bytes, checksum.hexdigest())


def size_bytes_of_tensors(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the elements alone, without the header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
