"""Blocks of raw rows: cut by the reading process, understood by the workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from openrlhf.datasets.samples import BadRow, Row

MAX_ROWS = 512
MAX_BYTES = 1 << 20


class SourceBlock(Protocol):
    """Some consecutive rows of one file."""

    @property
    def numbers(self) -> list[int]:
        """The place of each row: its line in a text file, else its number, from 1."""

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows, in the order of `numbers`; BadRow for one that cannot be read."""


@dataclass(frozen=True)
class LineBlock:
    """Lines of a text file, blank ones left out; `read` makes a row of each (`json_row`, `text_row`)."""

    numbers: list[int]
    lines: list[bytes]
    read: Callable[[bytes], Row | BadRow]

    def rows(self) -> Iterator[Row | BadRow]:
        return map(self.read, self.lines)


@dataclass(frozen=True)
class RowBlock:
    """Rows that are objects already."""

    numbers: list[int]
    values: list[Row | BadRow]

    def rows(self) -> Iterator[Row | BadRow]:
        return iter(self.values)


@dataclass(frozen=True)
class ArrowBlock:
    """Rows of an Arrow table. Its nested columns fill missing keys with nulls, which are taken out again."""

    numbers: list[int]
    batch: pa.RecordBatch

    def rows(self) -> Iterator[Row | BadRow]:
        nested = nested_columns(self.batch.schema)
        for row in self.batch.to_pylist():
            yield {key: without_nulls(value) if key in nested else value for key, value in row.items()}


def nested_columns(schema: pa.Schema) -> set[str]:
    """Columns that hold structs, at any depth."""
    return {column.name for column in schema if _holds_struct(column.type)}


def _holds_struct(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return True
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and _holds_struct(kind.value_type)


def without_nulls(value: Any) -> Any:
    """The value without the null entries of its objects."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def json_row(line: bytes) -> Row | BadRow:
    """The object that a line of JSON holds."""
    try:
        return checked_row(json.loads(line.decode("utf-8")))
    except json.JSONDecodeError as error:
        return BadRow(f"broken JSON: {error.msg} at character {error.pos + 1}")
    except UnicodeDecodeError as error:
        return _not_utf8(line, error)
    except RecursionError:
        return BadRow("its JSON is nested too deeply to be read")


def text_row(line: bytes) -> Row | BadRow:
    """A line of text as a row with one column, `text`."""
    try:
        return {"text": line.decode("utf-8").rstrip("\r\n")}
    except UnicodeDecodeError as error:
        return _not_utf8(line, error)


def checked_row(row: Any) -> Row | BadRow:
    """The row, if it is an object with columns."""
    return row if isinstance(row, dict) else BadRow(f"{type(row).__name__} where an object with columns belongs")


def _not_utf8(line: bytes, error: UnicodeDecodeError) -> BadRow:
    return BadRow(f"not UTF-8: byte {line[error.start]:#04x} at byte {error.start + 1} of the line")
