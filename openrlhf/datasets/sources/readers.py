"""One reader for each kind of file: a generator of blocks of rows that holds no more than a block or two.

The reading process cuts the blocks, the workers make rows of them.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as parquet
import zstandard

from openrlhf.datasets.formats.columns import names
from openrlhf.datasets.json_text import Refused, RefusedJson, load_json, load_json_with_refused, refused_in
from openrlhf.datasets.samples import BadRow, Row
from openrlhf.datasets.sources.zstd import check_whole
from openrlhf.errors import UserError

MAX_ROWS = 512
MAX_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 28  # of a text file, decompressed
MAX_JSON_BYTES = 1 << 31  # of a file that is one JSON text, which is read at once
_FOREIGN_BYTE = re.compile("[\udc80-\udcff]")  # as `surrogateescape` reads a byte that is not UTF-8
SPLIT_WORDS = ("train", "test", "validation", "valid", "val", "dev", "eval")
WRAPPER_KEYS = ("data", "rows", "examples", "instances", "train")


@dataclass(frozen=True)
class SourceBlock:
    """Some consecutive rows of one file.

    Attributes:
        numbers: the place of each row: its line in a text file, else its number, from 1.
        content: the rows as they were read: lines, an Arrow batch, or objects.
        read: makes rows of the content, in its order; BadRow for one that cannot be read.
    """

    numbers: Sequence[int]
    content: Any
    read: Callable[[Any], Iterable[Row | BadRow]]

    def rows(self) -> Iterable[Row | BadRow]:
        return self.read(self.content)


def open_binary(path: Path) -> BinaryIO:
    """The file's bytes, decompressed if its name says that it is compressed. Raises EOFError if it is cut off."""
    compression = path.suffix.lower()
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if compression == ".zst":
        check_whole(path)
        return cast(BinaryIO, io.BufferedReader(zstandard.open(path, "rb")))
    return path.open("rb")


def _read_lines(path: Path, read_row: Callable[[bytes], Row | BadRow]) -> Iterator[SourceBlock]:
    """Blocks of the file's lines that are not blank."""
    read = functools.partial(map, read_row)
    numbers: list[int] = []
    lines: list[bytes] = []
    size_bytes = 0
    with open_binary(path) as file:
        for number, line in enumerate(_lines(path, file), start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            numbers.append(number)
            lines.append(line)
            size_bytes += len(line)
            if len(lines) >= MAX_ROWS or size_bytes >= MAX_BYTES:
                yield SourceBlock(numbers, lines, read)
                numbers, lines, size_bytes = [], [], 0
    if lines:
        yield SourceBlock(numbers, lines, read)


def _lines(path: Path, file: BinaryIO | TextIO) -> Iterator[Any]:
    """The file's lines. Raises UserError of one that no row can be, before it fills the memory."""
    for line in iter(lambda: file.readline(MAX_LINE_BYTES + 1), file.read(0)):
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{path} has a line of more than {MAX_LINE_BYTES >> 20} MiB: write a row a line.")
        yield line


def _json_row(line: bytes) -> Row | BadRow:
    """The object that a line of JSON holds."""
    try:
        return _checked_row(load_json(line.decode("utf-8")))
    except json.JSONDecodeError as error:
        return BadRow(f"broken JSON: {error.msg} at character {error.pos + 1}")
    except UnicodeDecodeError as error:
        return _not_utf8(line, error)
    except RefusedJson as error:
        return BadRow(str(error))


def _text_row(line: bytes) -> Row | BadRow:
    """A line of text as a row with one column, `text`."""
    try:
        return {"text": line.decode("utf-8").rstrip("\r\n")}
    except UnicodeDecodeError as error:
        return _not_utf8(line, error)


def _checked_row(row: Any) -> Row | BadRow:
    """The row, if it is an object with columns."""
    if isinstance(row, Refused):
        return BadRow(row.reason)
    return row if isinstance(row, dict) else BadRow(f"{type(row).__name__} where an object with columns belongs")


def _not_utf8(line: bytes, error: UnicodeDecodeError) -> BadRow:
    return BadRow(f"not UTF-8: byte {line[error.start]:#04x} at byte {error.start + 1} of the line")


def read_json(path: Path) -> Iterator[SourceBlock]:
    """A list of rows, or an object that wraps one (`{"data": […]}`); an object a line is read as JSONL."""
    if _holds_lines(path):
        yield from _read_lines(path, _json_row)
        return
    with open_binary(path) as file:
        rows, has_refused = _rows_of(path, file.read(MAX_JSON_BYTES + 1))
    if has_refused:
        rows = [row if (found := refused_in(row)) is None else found for row in rows]
    yield from read_objects(rows)


def _holds_lines(path: Path) -> bool:
    """Whether the file has an object a line. It is opened anew each time: Zstandard cannot go back."""
    with open_binary(path) as file:
        if file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            return False
    with open_binary(path) as file:
        first = file.readline(MAX_LINE_BYTES)
        return _is_row(first, is_alone=not any(part.strip() for part in iter(lambda: file.read(4096), b"")))


def _is_row(line: bytes, is_alone: bool) -> bool:
    """Whether a line holds a row of its own; else it begins an object of several lines, or is one that wraps rows."""
    try:
        value = load_json(line.decode("utf-8-sig"))
    except ValueError as error:
        return isinstance(error, RefusedJson)
    return isinstance(value, dict) and not (is_alone and _lists_in(value, WRAPPER_KEYS))


def _lists_in(value: dict[str, Any], names: Iterable[str]) -> dict[str, list[Any]]:
    """The lists that an object holds under some of these names."""
    return {name: value[name] for name in names if isinstance(value.get(name), list)}


def _rows_of(path: Path, data: bytes) -> tuple[list[Any], bool]:
    """The rows of a whole file, and whether something in them is refused."""
    if len(data) > MAX_JSON_BYTES:
        raise UserError(f"{path} is one JSON text of more than {MAX_JSON_BYTES >> 30} GiB: write a row a line (JSONL).")
    try:
        value, refused = load_json_with_refused(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}.") from None
    except RefusedJson as error:
        raise UserError(f"{path}: {error}.") from None
    if isinstance(value, Refused):
        raise UserError(f"{path}: {value.reason}.")
    rows = _wrapped(path, value) if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise UserError(f"{path} holds neither a list of rows nor an object with one: write a row a line (JSONL).")
    return rows, bool(refused)


def _wrapped(path: Path, value: dict[str, Any]) -> list[Any] | None:
    """The rows that an object holds under a wrapper's name. Raises UserError where other rows stand beside them."""
    filled = [name for name, rows in _lists_in(value, dict.fromkeys((*WRAPPER_KEYS, *SPLIT_WORDS))).items() if rows]
    if len(filled) > 1:
        raise UserError(
            f"{path} holds rows under several names ({', '.join(filled)}): write each of them into a file of its own."
        )
    return max(_lists_in(value, WRAPPER_KEYS).values(), key=len, default=None)


def read_csv(path: Path) -> Iterator[SourceBlock]:
    """Rows of a CSV file with a header; a `.tsv` file has tabs between its columns."""
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    with open_binary(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.DictReader(_lines(path, text), delimiter=delimiter, restkey="", strict=True)
        try:
            _check_columns(path, reader.fieldnames or [])
            yield from _in_blocks((reader.line_num, _csv_row(row)) for row in reader)
        except csv.Error as error:
            raise UserError(f"{path}: broken CSV after line {reader.line_num}: {error}.") from None


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    """Raises UserError where a name is not UTF-8, or two columns have one: the later one would hide the other."""
    if _FOREIGN_BYTE.search("".join(columns)):
        raise UserError(f"{path} is not UTF-8: {names(dict.fromkeys(columns))}. Save the file as UTF-8.")
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise UserError(f"{path} has two columns of the name {twice[:60]!r}: rename or remove one of them.")


def _csv_row(row: dict) -> Row | BadRow:
    if "" in row and isinstance(row[""], list):
        return BadRow(
            f"more fields than the header has columns: {str(row[''])[:200]} is left over; quote fields that hold commas"
        )
    if None in row.values():
        missing = dict.fromkeys(key for key, value in row.items() if value is None)
        return BadRow(f"fewer fields than the header has columns: nothing for {names(missing)}")
    if foreign := _FOREIGN_BYTE.search("".join(row.values())):
        return BadRow(f"not UTF-8: byte {ord(foreign[0]) - 0xDC00:#04x}; save the file as UTF-8")
    return row


def read_parquet(path: Path) -> Iterator[SourceBlock]:
    with parquet.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow.names)
        yield from _arrow_blocks(file.iter_batches(batch_size=MAX_ROWS))


def read_arrow(path: Path) -> Iterator[SourceBlock]:
    """An Arrow file, or the stream that `datasets` writes under the same suffix."""
    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            stream = pa.ipc.open_stream(source)
            _check_columns(path, stream.schema.names)
            yield from _arrow_blocks(iter(stream))
            return
        _check_columns(path, file.schema.names)
        yield from _arrow_blocks(file.get_batch(index) for index in range(file.num_record_batches))


def read_dataset(dataset: Any) -> Iterator[SourceBlock]:
    """Rows of a `datasets.Dataset`."""
    nested = _nested_columns(dataset.features.arrow_schema)
    batches = dataset.with_format(None).iter(MAX_ROWS)
    rows = (dict(zip(batch, values, strict=True)) for batch in batches for values in zip(*batch.values(), strict=True))
    return _in_blocks(enumerate((_without_filled_in(row, nested) for row in rows), start=1))


def read_objects(rows: Any) -> Iterator[SourceBlock]:
    """Rows of any sequence of dicts."""
    return _in_blocks(enumerate(map(_checked_row, rows), start=1))


def _in_blocks(numbered_rows: Iterator[tuple[int, Row | BadRow]]) -> Iterator[SourceBlock]:
    while block := list(itertools.islice(numbered_rows, MAX_ROWS)):
        yield SourceBlock([number for number, _ in block], [row for _, row in block], iter)


def _arrow_blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[SourceBlock]:
    number = 1
    for batch in batches:
        for start in range(0, batch.num_rows, MAX_ROWS):
            part = batch.slice(start, MAX_ROWS)
            yield SourceBlock(range(number, number + part.num_rows), part, _arrow_rows)
            number += part.num_rows


def _arrow_rows(batch: pa.RecordBatch) -> Iterator[Row | BadRow]:
    nested = _nested_columns(batch.schema)
    try:
        rows: list[Row | BadRow] = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a date that Python has not
        rows = [_arrow_row(batch.slice(row, 1)) for row in range(batch.num_rows)]
    return (_without_filled_in(row, nested) if isinstance(row, dict) else row for row in rows)


def _arrow_row(row: pa.RecordBatch) -> Row | BadRow:
    found = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            found[name] = column[0].as_py()
        except (ValueError, OverflowError) as error:
            return BadRow(f"column {name!r} cannot be read: {error}")
    return found


def _without_filled_in(row: Row, nested: set[str]) -> Row:
    """The row without the nulls that Arrow fills in where an object of a nested column lacks a key."""
    return {key: _without_nulls(value) if key in nested else value for key, value in row.items()}


def _nested_columns(schema: pa.Schema) -> set[str]:
    """Columns that hold structs, at any depth."""
    return {column.name for column in schema if _holds_struct(column.type)}


def _holds_struct(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return True
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and _holds_struct(kind.value_type)


def _without_nulls(value: Any) -> Any:
    """The value without the null entries of its objects."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


READERS: dict[str, Callable[[Path], Iterator[SourceBlock]]] = {
    "jsonl": functools.partial(_read_lines, read_row=_json_row),
    "json": read_json,
    "csv": read_csv,
    "text": functools.partial(_read_lines, read_row=_text_row),
    "parquet": read_parquet,
    "arrow": read_arrow,
}
