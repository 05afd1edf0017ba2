"""The weights of a Hugging Face model as safetensors shards, written as the tensors come."""

import json
import os
from pathlib import Path

from torch import Tensor

from openrlhf.checkpoint.durable import write_text
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.manifest import FileRecord, checksum_of
from openrlhf.checkpoint.tensor_file import size_bytes_of_tensors, write_tensors

WEIGHTS_STEM = "model"
INDEX_NAME = "model.safetensors.index.json"
_METADATA = {"format": "pt"}  # transformers asks for it


class ShardWriter:
    """Collects tensors and writes a shard as soon as it is full: at most one shard is held."""

    def __init__(self, folder: Path, max_shard_bytes: int):
        self._folder = folder
        self._max_shard_bytes = max_shard_bytes
        self._held: dict[str, Tensor] = {}
        # Of the shards written: the tensors are on the meta device, shape and dtype alone.
        self._shards: list[tuple[FileRecord, dict[str, Tensor]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor on the CPU. Raises ValueError for one without elements."""
        if tensor.numel() == 0:
            raise ValueError(f"weight {name} has no elements (shape {tuple(tensor.shape)}); it was not gathered")
        held_bytes = size_bytes_of_tensors(self._held)
        if self._held and held_bytes + size_bytes_of_tensors({name: tensor}) > self._max_shard_bytes:
            self._write_held()
        self._held[name] = tensor

    def finish(self) -> None:
        """Write the last shard, give the shards their names, write the index, read everything back.

        Raises OSError if what is on the disk is not what was written.
        """
        if self._held:
            self._write_held()
        self._name_shards()
        for record, tensors in self._shards:
            _read_back(self._folder, record, tensors)

    def _write_held(self) -> None:
        path = self._folder / f"part-{len(self._shards):05d}.safetensors"
        record = write_tensors(path, self._held, _METADATA, at_half=lambda: fault_point("export.half_of_shard_written"))
        self._shards.append((record, {name: tensor.to("meta") for name, tensor in self._held.items()}))
        self._held = {}
        fault_point("export.shard_written")

    def _name_shards(self) -> None:
        count = len(self._shards)
        named, weight_map, total_bytes = [], {}, 0
        for index, (record, tensors) in enumerate(self._shards):
            name = f"{WEIGHTS_STEM}-{index + 1:05d}-of-{count:05d}.safetensors"
            name = f"{WEIGHTS_STEM}.safetensors" if count == 1 else name
            os.replace(self._folder / record.name, self._folder / name)
            named.append((FileRecord(name, record.size_bytes, record.blake2b), tensors))
            weight_map.update(dict.fromkeys(tensors, name))
            total_bytes += size_bytes_of_tensors(tensors)
        self._shards = named
        if count > 1:
            index_text = json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}, indent=2)
            write_text(self._folder / INDEX_NAME, index_text + "\n")


def _read_back(folder: Path, record: FileRecord, tensors: dict[str, Tensor]) -> None:
    """Raise OSError unless names, shapes, dtypes and every byte of a shard are what was written."""
    from safetensors import safe_open

    path = folder / record.name
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name) for name in list(file.keys())}
        if found.keys() != tensors.keys():
            raise OSError(f"{path} does not hold the weights that were written: {found.keys() ^ tensors.keys()}")
        for name, meant in tensors.items():
            there = file.get_tensor(name)
            if there.shape != meant.shape or there.dtype != meant.dtype:
                raise OSError(f"{path}: {name} is {there.dtype} {tuple(there.shape)}, was {meant.dtype} {meant.shape}")
    if path.stat().st_size != record.size_bytes or checksum_of(path) != record.blake2b:
        raise OSError(f"{path} does not have the bytes that were written")
