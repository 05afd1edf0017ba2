"""Prepared samples on disk: an Arrow file of ids and masks, and lengths beside it. Reading holds nothing in memory.

A sample's weights lie in `weights`, which is empty where every target of its block weighs 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from openrlhf.datasets.report import DataReport
from openrlhf.datasets.samples import EncodedSample

SAMPLES, TOKENS, TARGETS = "samples.arrow", "num_tokens.i32", "num_targets.i32"
REPORT, META = "report.json", "meta.json"
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


@dataclass(frozen=True)
class SampleBatch:
    """N samples as a record batch (it goes between processes, and to disk, faster than many), and facts about them.

    Attributes:
        columns: rows of `SCHEMA`.
        num_tokens, num_targets: of each sample, `(N,)` int32.
        num_cut, num_weighted: how many samples were cut, and have a weight other than 1.
        turn_end_id: the last target of the first sample that was not cut; None if all were.
    """

    columns: pa.RecordBatch
    num_tokens: np.ndarray
    num_targets: np.ndarray
    num_cut: int
    num_weighted: int
    turn_end_id: int | None

    @classmethod
    def of(cls, samples: list[EncodedSample], table: int, rows: list[int]) -> SampleBatch:
        """At least one sample, each of one token at least, of one table; `rows` are their row numbers."""
        num_tokens = np.array([len(sample.input_ids) for sample in samples], dtype=np.int32)
        whole = next((sample for sample in samples if not sample.was_cut), None)
        return cls(
            columns=_columns(samples, num_tokens, table, rows),
            num_tokens=num_tokens,
            num_targets=np.array([np.count_nonzero(sample.loss_mask) for sample in samples], dtype=np.int32),
            num_cut=sum(sample.was_cut for sample in samples),
            num_weighted=sum(sample.is_weighted for sample in samples),
            turn_end_id=None if whole is None else int(whole.input_ids[np.flatnonzero(whole.loss_mask)[-1] + 1]),
        )


def _columns(samples: list[EncodedSample], num_tokens: np.ndarray, table: int, rows: list[int]) -> pa.RecordBatch:
    offsets = np.concatenate([[0], np.cumsum(num_tokens, dtype=np.int64)])
    loss_mask = np.concatenate([sample.loss_mask for sample in samples])  # float32 if any sample is weighted
    has_weights = loss_mask.dtype == np.float32
    weights = loss_mask if has_weights else np.zeros(0, np.float32)
    columns = [
        pa.LargeListArray.from_arrays(offsets, np.concatenate([sample.input_ids for sample in samples])),
        pa.LargeListArray.from_arrays(offsets, (loss_mask > 0).astype(np.uint8)),
        pa.LargeListArray.from_arrays(offsets if has_weights else np.zeros_like(offsets), weights),
        pa.array([sample.row_weight for sample in samples], pa.float32()),
        pa.array(np.full(len(samples), table, dtype=np.int32)),
        pa.array(rows, pa.int64()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


class SampleWriter:
    """Appends samples, a record batch at a time, in a `with` block; `finish` writes what makes the folder whole."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file = pa.OSFile(str(folder / SAMPLES), "wb")
        self._writer = pa.ipc.new_file(self._file, SCHEMA)
        self._tokens = (folder / TOKENS).open("wb")
        self._targets = (folder / TARGETS).open("wb")
        self._batch_sizes: list[int] = []

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in (self._writer, self._file, self._tokens, self._targets):
            file.close()

    def append(self, samples: SampleBatch) -> None:
        self._writer.write_batch(samples.columns)
        self._tokens.write(samples.num_tokens.tobytes())
        self._targets.write(samples.num_targets.tobytes())
        self._batch_sizes.append(len(samples.num_tokens))

    def finish(self, report: DataReport, meta: dict[str, Any]) -> None:
        """Writes the report, and `meta` (table names, fingerprint) beside it, behind the `with` block."""
        report.write(self._folder / REPORT)
        sizes_bytes = {name: (self._folder / name).stat().st_size for name in (SAMPLES, TOKENS, TARGETS, REPORT)}
        meta = {**meta, "batch_sizes": self._batch_sizes, "sizes_bytes": sizes_bytes}
        (self._folder / META).write_text(json.dumps(meta), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Whether every file is there with the size it had when it was written."""
    try:
        sizes_bytes = json.loads((folder / META).read_text(encoding="utf-8"))["sizes_bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes_bytes.items())
    except (OSError, ValueError, KeyError):
        return False


class PreparedSamples:
    """Reads samples by index from a memory-mapped folder; can be sent to other processes."""

    def __init__(self, folder: Path):
        self.folder = folder
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        self.table_names: list[str] = meta["table_names"]
        self.fingerprint: str = meta["fingerprint"]
        self.report = DataReport.read(folder / REPORT)
        self.num_tokens: np.ndarray = np.memmap(folder / TOKENS, dtype=np.int32, mode="r")
        self.num_target_tokens: np.ndarray = np.memmap(folder / TARGETS, dtype=np.int32, mode="r")
        self._ends = np.cumsum(meta["batch_sizes"])
        self._file = pa.ipc.open_file(pa.memory_map(str(folder / SAMPLES)))

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

    def origin(self, index: int) -> tuple[int, int]:
        """The table that the sample came from, and its row number there."""
        batch, row = self._locate(index)
        return batch.column("table")[row].as_py(), batch.column("row")[row].as_py()

    def _locate(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._file.get_batch(number), index - start


def _values(column: pa.LargeListArray, row: int, dtype: type[np.number]) -> np.ndarray:
    values = column[row].values
    if not len(values):
        return np.zeros(0, dtype)
    data = np.frombuffer(values.buffers()[1], dtype=dtype)  # pyarrow's own to_numpy() loads pandas: 0.2 s of a start
    return data[values.offset : values.offset + len(values)]
