"""Safetensors files, written in one stream: checksummed on the way, flushed, without a second copy in memory."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from openrlhf.atomic_file import naming, write_flushed
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.manifest import FileRecord, new_checksum, problem_of

INDEX_NAME = "model.safetensors.index.json"
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
_PIECE_NUMEL = 1 << 24  # of a tensor that is not on the CPU, in its memory at a time
_MODEL_METADATA = {"format": "pt"}  # transformers asks for it


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    at_half: Callable[[], None] = lambda: None,
    before_flush: Callable[[], None] = lambda: None,
) -> FileRecord:
    """Write a safetensors file and flush it to disk.

    Args:
        tensors: any shape; a view is written as its own elements. Those of a GPU are copied a piece at a time.
        metadata: strings kept in the header.
        at_half, before_flush: called when half of the tensors are written, and when all are but not yet on
        the disk.

    Returns: the file's record, with the checksum of the bytes that were meant to be written.
    """
    # The file is the length of the header (8 bytes), the header in JSON, then the elements of one tensor after another.
    # Each piece goes into the checksum and into the file at once, so the checksum is of what was meant: a disk that
    # stores other bytes is found when the file is read back. A tensor's bytes are handed over as they lie in memory.
    checksum = new_checksum()
    with naming(path), open(path, "wb") as file:

        def write(data: bytes | memoryview) -> None:
            checksum.update(data)
            file.write(data)

        write(_header(tensors, metadata))
        for index, tensor in enumerate(tensors.values()):
            if index == (len(tensors) + 1) // 2:
                file.flush()
                at_half()
            for piece in _pieces_of(tensor):
                write(piece)
        size_bytes = file.tell()
        before_flush()
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(path.name, size_bytes, checksum.hexdigest())


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def _pieces_of(tensor: Tensor) -> Iterator[memoryview]:
    for piece in tensor.detach().contiguous().reshape(-1).split(_PIECE_NUMEL):
        yield piece.cpu().view(torch.uint8).numpy().data


class ShardWriter:
    """The weights of a Hugging Face model as shards. A shard is written as soon as it is full: one at most is held."""

    def __init__(self, folder: Path, max_shard_bytes: int):
        self._folder = folder
        self._max_shard_bytes = max_shard_bytes
        self._held: dict[str, Tensor] = {}
        self._shards: list[tuple[FileRecord, list[str]]] = []  # each with the names of its weights
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor on the CPU. Raises ValueError for one without elements."""
        if tensor.numel() == 0:
            raise ValueError(f"weight {name} has no elements (shape {tuple(tensor.shape)}); it was not gathered")
        if self._held and sum(held.nbytes for held in self._held.values()) + tensor.nbytes > self._max_shard_bytes:
            self._write_held()
        self._held[name] = tensor

    def finish(self) -> None:
        """Write the last shard, give the shards their names, write the index, read everything back.

        Raises OSError if the bytes on the disk are not those that were written.
        """
        if self._held:
            self._write_held()
        self._name_shards()
        for record, names in self._shards:
            _read_back(self._folder, record, names)

    @property
    def records(self) -> list[FileRecord]:
        """Of the shards that are written."""
        return [record for record, _ in self._shards]

    def _write_held(self) -> None:
        path = self._folder / f"part-{len(self._shards):05d}.safetensors"
        record = write_tensors(
            path, self._held, _MODEL_METADATA, at_half=lambda: fault_point("export.half_of_shard_written")
        )
        self._shards.append((record, list(self._held)))
        self._total_bytes += sum(tensor.nbytes for tensor in self._held.values())
        self._held = {}
        fault_point("export.shard_written")

    def _name_shards(self) -> None:
        """Names say how many shards there are, which is known at the end alone."""
        count = len(self._shards)
        weight_map = {}
        for index, (record, names) in enumerate(self._shards):
            name = f"model-{index + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
            os.replace(self._folder / record.name, self._folder / name)
            self._shards[index] = (FileRecord(name, record.size_bytes, record.blake2b), names)
            weight_map.update(dict.fromkeys(names, name))
        if count > 1:
            index_text = json.dumps({"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}, indent=2)
            write_flushed(self._folder / INDEX_NAME, index_text + "\n")


def _read_back(folder: Path, record: FileRecord, names: list[str]) -> None:
    """Raise OSError unless every byte of a shard, and so every shape and dtype, is as it was meant, and it opens."""
    from safetensors import safe_open

    if problem := problem_of(folder, record):
        raise OSError(problem)
    with safe_open(folder / record.name, framework="pt") as file:
        if set(file.keys()) != set(names):
            raise OSError(f"{folder / record.name} does not hold the weights that were written")
