"""Prepared samples on disk: an Arrow file of ids and masks, and lengths beside it. Reading holds nothing in memory.

A pair is two samples of one row, the chosen answer's first, in a file that has a column more, `margin`.

A sample's weights lie in `weights`, which is empty where every target of its block weighs 1. Every byte has a checksum.
All of them are compared before a run begins, those of the samples up to `MAX_BYTES_AT_START`; a block of samples behind
that, when it is first read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from openrlhf.datasets.report import DataReport
from openrlhf.datasets.samples import EncodedSample
from openrlhf.errors import UserError

SAMPLES, TOKENS, TARGETS = "samples.arrow", "num_tokens.i32", "num_targets.i32"
REPORT, META = "report.json", "meta.json"
MAX_BYTES_AT_START = 1 << 30  # about 0.1 s
SCHEMA = pa.schema(
    [
        ("input_ids", pa.large_list(pa.int32())),
        ("loss_mask", pa.large_list(pa.uint8())),
        ("weights", pa.large_list(pa.float32())),
        ("row_weight", pa.float32()),
        ("table", pa.int32()),
        ("row", pa.int64()),
    ]
)
PAIR_SCHEMA = SCHEMA.append(pa.field("margin", pa.float64()))


@dataclass(frozen=True)
class SampleBatch:
    """N samples as a record batch (it goes between processes, and to disk, faster than many), and facts about them.

    Attributes:
        columns: rows of `SCHEMA`, or of `PAIR_SCHEMA`.
        num_tokens, num_targets: of each sample, `(N,)` int32.
        num_rows, num_cut, num_weighted: rows that the samples are of; those with a sample that was cut, and with one
            that has a weight other than 1.
        turn_end_id: the last target of the first sample that was not cut; None if all were.
        largest_id: of all token ids.
    """

    columns: pa.RecordBatch
    num_tokens: np.ndarray
    num_targets: np.ndarray
    num_rows: int
    num_cut: int
    num_weighted: int
    turn_end_id: int | None
    largest_id: int

    @classmethod
    def of(cls, samples: list[EncodedSample], table: int, rows: list[int]) -> SampleBatch:
        """At least one sample, each of one token at least, of one table; `rows` are their row numbers."""
        num_tokens = np.array([len(sample.input_ids) for sample in samples], dtype=np.int32)
        input_ids = np.concatenate([sample.input_ids for sample in samples])
        whole = next((sample for sample in samples if not sample.was_cut), None)
        return cls(
            columns=_columns(samples, input_ids, num_tokens, table, rows),
            num_tokens=num_tokens,
            num_targets=np.array([np.count_nonzero(sample.loss_mask) for sample in samples], dtype=np.int32),
            num_rows=len(set(rows)),
            num_cut=len({row for sample, row in zip(samples, rows, strict=True) if sample.was_cut}),
            num_weighted=len({row for sample, row in zip(samples, rows, strict=True) if sample.is_weighted}),
            turn_end_id=None if whole is None else int(whole.input_ids[np.flatnonzero(whole.loss_mask)[-1] + 1]),
            largest_id=int(input_ids.max()),
        )


def _columns(
    samples: list[EncodedSample], input_ids: np.ndarray, num_tokens: np.ndarray, table: int, rows: list[int]
) -> pa.RecordBatch:
    offsets = np.concatenate([[0], np.cumsum(num_tokens, dtype=np.int64)])
    loss_mask = np.concatenate([sample.loss_mask for sample in samples])  # float32 if any sample is weighted
    has_weights = loss_mask.dtype == np.float32
    weights = loss_mask if has_weights else np.zeros(0, np.float32)
    columns = [
        pa.LargeListArray.from_arrays(offsets, input_ids),
        pa.LargeListArray.from_arrays(offsets, (loss_mask > 0).astype(np.uint8)),
        pa.LargeListArray.from_arrays(offsets if has_weights else np.zeros_like(offsets), weights),
        pa.array([sample.row_weight for sample in samples], pa.float32()),
        pa.array(np.full(len(samples), table, dtype=np.int32)),
        pa.array(rows, pa.int64()),
    ]
    if samples[0].margin is None:
        return pa.record_batch(columns, schema=SCHEMA)
    margins = pa.array([sample.margin for sample in samples], pa.float64())
    return pa.record_batch([*columns, margins], schema=PAIR_SCHEMA)


class _ChecksummedFile:
    """A file to write, with a checksum of each part; a part ends where `end_part` is called."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._digest = xxhash.xxh3_64()
        self.parts: list[tuple[int, str]] = []  # where each ends, and its checksum

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


class SampleWriter:
    """Appends samples, a record batch at a time, in a `with` block; `finish` writes what makes the folder whole."""

    def __init__(self, folder: Path, schema: pa.Schema):
        self._folder = folder
        self._files = {name: _ChecksummedFile(folder / name) for name in (SAMPLES, TOKENS, TARGETS)}
        self._writer = pa.ipc.new_file(pa.PythonFile(self._files[SAMPLES], "w"), schema)
        self._batch_sizes: list[int] = []

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._writer.close()
        for file in self._files.values():
            file.close()

    def append(self, samples: SampleBatch) -> None:
        self._files[SAMPLES].end_part()
        self._writer.write_batch(samples.columns)
        self._files[TOKENS].write(samples.num_tokens.tobytes())
        self._files[TARGETS].write(samples.num_targets.tobytes())
        self._batch_sizes.append(len(samples.num_tokens))

    def finish(self, report: DataReport, meta: dict[str, Any]) -> None:
        """Writes the report, and `meta` (table names, fingerprint) beside it, behind the `with` block."""
        file = _ChecksummedFile(self._folder / REPORT)
        file.write(report.to_json().encode())
        file.close()
        parts = {name: file.parts for name, file in {**self._files, REPORT: file}.items()}
        _write_meta(self._folder, {**meta, "batch_sizes": self._batch_sizes, "parts": parts})


def list_file(folder: Path, name: str) -> None:
    """Makes a folder of one written file whole, in the sense of `is_whole`."""
    data = np.memmap(folder / name, mode="r")
    _write_meta(folder, {"parts": {name: [(len(data), _checksum(data))]}})


def _write_meta(folder: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content)
    (folder / META).write_text(f"{_checksum(text.encode())} {text}", encoding="utf-8")


def _checksum(data: Any) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def _read_meta(folder: Path) -> dict[str, Any]:
    """Raises OSError or ValueError where it is not there, or not as it was written."""
    checksum, _, text = (folder / META).read_text(encoding="utf-8").partition(" ")
    if checksum != _checksum(text.encode()):
        raise ValueError("its own checksum does not fit")
    return json.loads(text)


def _damaged_part(data: Any, parts: list[tuple[int, str]]) -> int | None:
    """The number of the first part of a file's bytes that is not as it was written."""
    start = 0
    for number, (end, checksum) in enumerate(parts):
        if _checksum(data[start:end]) != checksum:
            return number
        start = end
    return None


def is_whole(folder: Path) -> bool:
    """Whether every file is there as it was written; of a big one the size alone."""
    try:
        for name, parts in _read_meta(folder)["parts"].items():
            size_bytes = parts[-1][0]
            if (folder / name).stat().st_size != size_bytes:
                return False
            is_read = 0 < size_bytes <= MAX_BYTES_AT_START
            if is_read and _damaged_part(np.memmap(folder / name, mode="r"), parts) is not None:
                return False
        return True
    except (OSError, ValueError):
        return False


class PreparedSamples:
    """Reads samples by index from a memory-mapped folder; can be sent to other processes."""

    def __init__(self, folder: Path):
        self.folder = folder
        meta = _read_meta(folder)
        self.table_names: list[str] = meta["table_names"]
        self.fingerprint: str = meta["fingerprint"]
        self.report = DataReport.from_json((folder / REPORT).read_text(encoding="utf-8"))
        self.num_tokens: np.ndarray = np.memmap(folder / TOKENS, dtype=np.int32, mode="r")
        self.num_target_tokens: np.ndarray = np.memmap(folder / TARGETS, dtype=np.int32, mode="r")
        self._ends = np.cumsum(meta["batch_sizes"])
        self._file = pa.ipc.open_file(pa.memory_map(str(folder / SAMPLES)))
        self._last_batch: tuple[int, Any] = -1, None  # several facts of one sample are asked for, one after the other
        # The first part is what stands before the first batch, the last one what stands behind the last.
        self._parts: list[tuple[int, str]] = meta["parts"][SAMPLES]
        is_checked = self._parts[-1][0] <= MAX_BYTES_AT_START
        self._unchecked = set() if is_checked else set(range(len(self._ends)))

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedSamples, (self.folder,)

    def __len__(self) -> int:
        return len(self.num_tokens)

    def sample(self, index: int) -> EncodedSample:
        """The sample's ids and mask, read-only views of the file."""
        batch, row = self._locate(index)
        weights = _values(batch.column("weights"), row, np.float32)
        return EncodedSample(
            input_ids=_values(batch.column("input_ids"), row, np.int32),
            loss_mask=weights if len(weights) else _values(batch.column("loss_mask"), row, np.uint8),
            row_weight=batch.column("row_weight")[row].as_py(),
        )

    def margin(self, index: int) -> float:
        """That of the pair whose answer the sample is."""
        batch, row = self._locate(index)
        return batch.column("margin")[row].as_py()

    def origin(self, index: int) -> tuple[int, int]:
        """The table that the sample came from, and its row number there."""
        batch, row = self._locate(index)
        return batch.column("table")[row].as_py(), batch.column("row")[row].as_py()

    def _locate(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        if number in self._unchecked:
            self._check(number)
        last, batch = self._last_batch
        if number != last:
            batch = self._file.get_batch(number)
            self._last_batch = number, batch
        return batch, index - start

    def _check(self, number: int) -> None:
        """Raises UserError where a batch is not as it was written."""
        start, end = self._parts[number][0], self._parts[number + 1][0]
        data = np.memmap(self.folder / SAMPLES, mode="r", offset=start, shape=(end - start,))
        if _checksum(data) != self._parts[number + 1][1]:
            raise UserError(
                f"The prepared data in {self.folder} are damaged (checksum of block {number}): remove that folder, and "
                "start again."
            )
        self._unchecked.discard(number)


def _values(column: pa.LargeListArray, row: int, dtype: type[np.number]) -> np.ndarray:
    values = column[row].values
    if not len(values):
        return np.zeros(0, dtype)
    data = np.frombuffer(values.buffers()[1], dtype=dtype)  # pyarrow's own to_numpy() loads pandas: 0.2 s of a start
    return data[values.offset : values.offset + len(values)]
