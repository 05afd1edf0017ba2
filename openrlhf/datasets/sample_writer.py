"""Writes the files that `prepared.py` describes and reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from openrlhf.datasets.prepared import REPORT, TARGETS, TOKENS, Parts, SampleBatch, shard_name, write_meta
from openrlhf.datasets.report import DataReport


class FinishedShard(NamedTuple):
    """The number of its record batches, and the checksums of its file."""

    num_batches: int
    parts: Parts


class SampleShardWriter:
    """Writes one Arrow file of samples, a record batch at a time."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._file = _ChecksummedFile(path)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), schema)
        self._num_batches = 0

    def append(self, samples: SampleBatch) -> None:
        self._file.end_part()
        self._writer.write_batch(samples.columns)
        self._num_batches += 1

    def close(self) -> FinishedShard:
        self._writer.close()
        self._file.close()
        return FinishedShard(self._num_batches, self._file.parts)


class SampleWriter:
    """Fills a folder in a `with` block: samples are appended, or come in shards; `finish` then makes it whole."""

    def __init__(self, folder: Path, schema: pa.Schema):
        self._folder, self._schema = folder, schema
        self._lengths = {name: _ChecksummedFile(folder / name) for name in (TOKENS, TARGETS)}
        self._shard: SampleShardWriter | None = None
        self._shards: list[FinishedShard] = []
        self._batch_sizes: list[int] = []

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._end_shard()
        for file in self._lengths.values():
            file.close()

    def begin_shard(self) -> None:
        """What is appended from now on goes into a file of its own."""
        self._end_shard()
        self._shard = SampleShardWriter(self._folder / shard_name(len(self._shards)), self._schema)

    def append(self, samples: SampleBatch) -> None:
        assert self._shard is not None
        self._shard.append(samples)
        self.note(samples)

    def note(self, samples: SampleBatch) -> None:
        """Keeps the lengths of samples; their columns are in a shard."""
        self._lengths[TOKENS].write(samples.num_tokens.tobytes())
        self._lengths[TARGETS].write(samples.num_targets.tobytes())
        self._batch_sizes.append(len(samples.num_tokens))

    def take_over(self, path: Path, shard: FinishedShard) -> None:
        """The next shard of the folder is a file that another process has written; it is moved, not copied."""
        path.rename(self._folder / shard_name(len(self._shards)))
        self._shards.append(shard)

    def finish(self, report: DataReport, meta: dict[str, Any]) -> None:
        """Writes the report, and `meta` (table names, fingerprint) beside it, behind the `with` block."""
        file = _ChecksummedFile(self._folder / REPORT)
        file.write(report.to_json().encode())
        file.close()
        parts = {shard_name(number): shard.parts for number, shard in enumerate(self._shards)}
        parts |= {name: file.parts for name, file in {**self._lengths, REPORT: file}.items()}
        shards = [shard.num_batches for shard in self._shards]
        write_meta(self._folder, {**meta, "shards": shards, "batch_sizes": self._batch_sizes, "parts": parts})

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shards.append(self._shard.close())
            self._shard = None


class _ChecksummedFile:
    """A file to write, with a checksum of each part; a part ends where `end_part` is called."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._digest = xxhash.xxh3_64()
        self.parts: Parts = []

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def end_part(self) -> None:
        self.parts.append((self._file.tell(), self._digest.hexdigest()))
        self._digest.reset()

    def close(self) -> None:
        if not self._file.closed:
            self.end_part()
            self._file.close()

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed
