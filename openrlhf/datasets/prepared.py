"""Prepared samples on disk: Arrow files of ids and masks, and lengths beside them. Reading holds nothing in memory.

A shard, which is one of these files, holds the samples of `BLOCKS_A_SHARD` blocks of rows, whoever has encoded them.

A pair is two samples of one row, the chosen answer's first, in a file that has a column more, `margin`.

A sample's weights lie in `weights`, which is empty where every target of its block weighs 1. Every byte has a checksum.
All of them are compared before a run begins, those of the samples up to `MAX_BYTES_AT_START`; a block of samples behind
that, when it is first read.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
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
_ARROW = ".arrow"
MAX_BYTES_AT_START = 1 << 30  # about 0.1 s
BLOCKS_A_SHARD = 256  # at most 131,072 rows or 256 MiB of text
_MOST_OPEN_SHARDS = 512  # systems allow 1,024 open files
Parts = list[tuple[int, str]]  # of a file: where each part ends, and its checksum
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
        columns: rows of `SCHEMA`, or of `PAIR_SCHEMA`; None where they are in a shard already.
        num_tokens, num_targets: of each sample, `(N,)` int32.
        num_rows, num_cut, num_weighted: rows that the samples are of; those with a sample that was cut, and with one
            that has a weight other than 1.
        turn_end_id: the last target of the first sample that was not cut; None if all were.
        largest_id: of all token ids.
    """

    columns: pa.RecordBatch | None
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


def shard_name(number: int) -> str:
    """The file of a folder's shard."""
    return f"samples-{number}.arrow" if number else SAMPLES


def list_file(folder: Path, name: str) -> None:
    """Makes a folder of one written file whole, in the sense of `is_whole`."""
    data = np.memmap(folder / name, mode="r")
    write_meta(folder, {"parts": {name: [(len(data), _checksum(data))]}})


def write_meta(folder: Path, content: dict[str, Any]) -> None:
    """Makes a folder whole: `content` has the checksums of all its files."""
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


def _damaged_part(data: Any, parts: Parts) -> int | None:
    """The number of the first part of a file's bytes that is not as it was written."""
    start = 0
    for number, (end, checksum) in enumerate(parts):
        if _checksum(data[start:end]) != checksum:
            return number
        start = end
    return None


def _are_checked_at_start(parts: dict[str, Parts]) -> bool:
    """Whether the samples of a folder are few enough."""
    return sum(of_file[-1][0] for name, of_file in parts.items() if name.endswith(_ARROW)) <= MAX_BYTES_AT_START


def is_whole(folder: Path) -> bool:
    """Whether every file is there as it was written; of a big one the size alone."""
    try:
        all_parts = _read_meta(folder)["parts"]
        are_samples_read = _are_checked_at_start(all_parts)
        for name, parts in all_parts.items():
            size_bytes = parts[-1][0]
            if (folder / name).stat().st_size != size_bytes:
                return False
            is_read = size_bytes > 0 and (are_samples_read or not name.endswith(_ARROW))
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
        self._shard_ends = np.cumsum(meta["shards"])  # in batches
        self._open_shard = functools.lru_cache(_MOST_OPEN_SHARDS)(self._opened)
        self._last_batch: tuple[int, Any] = -1, None  # several facts of one sample are asked for, one after the other
        # The first part is what stands before the first batch, the last one what stands behind the last.
        self._parts: list[Parts] = [meta["parts"][shard_name(number)] for number in range(len(self._shard_ends))]
        self._unchecked = set() if _are_checked_at_start(meta["parts"]) else set(range(len(self._ends)))

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
        """That of the pair whose answer the sample is; 0 where its row has none, or what is no margin."""
        batch, row = self._locate(index)
        margin = batch.column("margin")[row].as_py()
        return 0.0 if math.isnan(margin) else margin

    def margins(self) -> Iterator[np.ndarray]:
        """Those of all samples of pairs, `(samples,)` of a block of rows each; NaN where a row has what is none."""
        for first in (0, *self._ends[:-1].tolist()):
            column = self._locate(first)[0].column("margin")
            yield np.frombuffer(column.buffers()[1], np.float64, len(column), 8 * column.offset)

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
            shard, place = self._place_of(number)
            batch = self._open_shard(shard).get_batch(place)
            self._last_batch = number, batch
        return batch, index - start

    def _place_of(self, batch: int) -> tuple[int, int]:
        """The shard of a batch, and its number there."""
        shard = int(np.searchsorted(self._shard_ends, batch, side="right"))
        return shard, batch - (int(self._shard_ends[shard - 1]) if shard else 0)

    def _opened(self, shard: int) -> Any:
        return pa.ipc.open_file(pa.memory_map(str(self.folder / shard_name(shard))))

    def _check(self, number: int) -> None:
        """Raises UserError where a batch is not as it was written."""
        shard, place = self._place_of(number)
        (start, _), (end, checksum) = self._parts[shard][place : place + 2]
        data = np.memmap(self.folder / shard_name(shard), mode="r", offset=start, shape=(end - start,))
        if _checksum(data) != checksum:
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
