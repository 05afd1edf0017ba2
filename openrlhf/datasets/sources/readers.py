"""One reader for each kind of file: a generator of row blocks that holds no more than a block or two."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as parquet

from openrlhf.config.disk import data_file_kind
from openrlhf.datasets.samples import BadRow, Row
from openrlhf.datasets.sources.blocks import (
    MAX_BYTES,
    MAX_ROWS,
    ArrowBlock,
    LineBlock,
    RowBlock,
    SourceBlock,
    checked_row,
    json_row,
    text_row,
    without_nulls,
)
from openrlhf.errors import UserError

WRAPPER_KEYS = ("data", "rows", "examples", "instances", "train")


def open_binary(path: Path) -> BinaryIO:
    """The file's bytes, decompressed if its name says that it is compressed."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".zst":
        import zstandard

        return cast(BinaryIO, io.BufferedReader(zstandard.open(path, "rb")))
    return path.open("rb")


def read_lines(path: Path, read: Callable[[bytes], Row | BadRow]) -> Iterator[SourceBlock]:
    """Blocks of the file's lines that are not blank."""
    numbers: list[int] = []
    lines: list[bytes] = []
    size_bytes = 0
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            numbers.append(number)
            lines.append(line)
            size_bytes += len(line)
            if len(lines) >= MAX_ROWS or size_bytes >= MAX_BYTES:
                yield LineBlock(numbers, lines, read)
                numbers, lines, size_bytes = [], [], 0
    if lines:
        yield LineBlock(numbers, lines, read)


def read_jsonl(path: Path) -> Iterator[SourceBlock]:
    return read_lines(path, json_row)


def read_text(path: Path) -> Iterator[SourceBlock]:
    return read_lines(path, text_row)


def read_json(path: Path) -> Iterator[SourceBlock]:
    """A list of rows, or an object that wraps one (`{"data": […]}`); an object a line is read as JSONL."""
    with open_binary(path) as file:
        begins_list = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
        file.seek(0)
        first_line = None if begins_list else _json_or_none(file.readline())
        if isinstance(first_line, dict) and _wrapped(first_line) is None:
            yield from read_jsonl(path)
            return
        file.seek(0)
        rows = _rows_of(path, file.read())
    yield from read_objects(rows)


def _json_or_none(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _wrapped(value: dict[str, Any]) -> list[Any] | None:
    """The rows that an object holds under a wrapper's name."""
    return next((value[key] for key in WRAPPER_KEYS if isinstance(value.get(key), list)), None)


def _rows_of(path: Path, data: bytes) -> list[Any]:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}.") from None
    rows = _wrapped(value) if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise UserError(f"{path} holds neither a list of rows nor an object with one: write a row a line (JSONL).")
    return rows


def read_csv(path: Path) -> Iterator[SourceBlock]:
    """Rows of a CSV file with a header; a `.tsv` file has tabs between its columns."""
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    with open_binary(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.DictReader(text, delimiter=delimiter, restkey="", strict=True)
        yield from _in_blocks(_csv_rows(path, reader))


def _csv_rows(path: Path, reader: csv.DictReader) -> Iterator[tuple[int, Row | BadRow]]:
    try:
        for row in reader:
            yield reader.line_num, _csv_row(row)
    except csv.Error as error:
        raise UserError(f"{path}: broken CSV after line {reader.line_num}: {error}.") from None


def _csv_row(row: dict) -> Row | BadRow:
    if "" in row and isinstance(row[""], list):
        return BadRow(
            f"more fields than the header has columns: {row['']!r} is left over; quote fields that hold commas"
        )
    if None in row.values():
        missing = [key for key, value in row.items() if value is None]
        return BadRow(f"fewer fields than the header has columns: nothing for {', '.join(map(repr, missing))}")
    return row


def read_parquet(path: Path) -> Iterator[SourceBlock]:
    with parquet.ParquetFile(path) as file:
        yield from _arrow_blocks(file.iter_batches(batch_size=MAX_ROWS))


def read_arrow(path: Path) -> Iterator[SourceBlock]:
    """An Arrow file, or the stream that `datasets` writes under the same suffix."""
    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            yield from _arrow_blocks(iter(pa.ipc.open_stream(source)))
            return
        yield from _arrow_blocks(file.get_batch(index) for index in range(file.num_record_batches))


def read_dataset(dataset: Any) -> Iterator[SourceBlock]:
    """Rows of a `datasets.Dataset`."""
    plain = dataset.with_format(None)
    nested = {name for name, feature in dataset.features.items() if _is_struct(feature)}
    for start in range(0, len(plain), MAX_ROWS):
        columns = plain[start : start + MAX_ROWS]
        num_rows = len(next(iter(columns.values()), []))
        rows: list[Row | BadRow] = [
            {name: without_nulls(values[i]) if name in nested else values[i] for name, values in columns.items()}
            for i in range(num_rows)
        ]
        yield RowBlock(list(range(start + 1, start + 1 + num_rows)), rows)


def _is_struct(feature: Any) -> bool:
    if isinstance(feature, dict):
        return True
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return inner is not None and _is_struct(inner)


def read_objects(rows: Any) -> Iterator[SourceBlock]:
    """Rows of any sequence of dicts."""
    return _in_blocks(enumerate(map(checked_row, rows), start=1))


def _arrow_blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[SourceBlock]:
    number = 1
    for batch in batches:
        for start in range(0, batch.num_rows, MAX_ROWS):
            part = batch.slice(start, MAX_ROWS)
            yield ArrowBlock(list(range(number, number + part.num_rows)), part)
            number += part.num_rows


def _in_blocks(numbered_rows: Iterator[tuple[int, Row | BadRow]]) -> Iterator[SourceBlock]:
    while block := list(itertools.islice(numbered_rows, MAX_ROWS)):
        yield RowBlock([number for number, _ in block], [row for _, row in block])


READERS: dict[str, Callable[[Path], Iterator[SourceBlock]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "text": read_text,
    "parquet": read_parquet,
    "arrow": read_arrow,
}


def reader_for(path: Path) -> Callable[[Path], Iterator[SourceBlock]] | None:
    """The reader for a file's suffix; None if there is none."""
    kind = data_file_kind(path)
    return None if kind is None else READERS[kind]
