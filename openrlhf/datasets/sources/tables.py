"""A table of rows: one file or one loaded data set, read in blocks, guarded against changes, known by its content."""

from __future__ import annotations

import itertools
import json
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
import zstandard

from openrlhf.config.disk import COMPRESSIONS, DATA_SUFFIXES, data_file_kind, is_lfs_pointer
from openrlhf.datasets.report import BadRows
from openrlhf.datasets.samples import Row
from openrlhf.datasets.sources.readers import READERS, SourceBlock, read_dataset, read_objects
from openrlhf.errors import UserError

READ_ERRORS = (OSError, EOFError, pa.ArrowException, zlib.error, zstandard.ZstdError, UnicodeError)
SETTLED_SECONDS = 2.0  # a file changed a moment ago may change again within one tick of its clock


@dataclass(frozen=True)
class Table(ABC):
    """Rows with one name, by which messages call them."""

    name: str

    @property
    def kind(self) -> str:
        """By which its bytes become rows; "" where no bytes do."""
        return ""

    @abstractmethod
    def blocks(self) -> Iterator[SourceBlock]:
        """All rows, in order. Raises UserError if the table cannot be read."""

    @abstractmethod
    def content_hash(self, known: dict[str, str]) -> str:
        """Hash of its content. `known`: hashes by file state; new ones are added."""

    def check_unchanged(self) -> None:
        """Raises UserError where the content may be another than `content_hash` has seen."""
        return

    def row_name(self, number: int) -> str:
        """A row's name in messages."""
        return f"{self.name}, row {number}"

    def first_rows(self, count: int) -> Iterator[tuple[int, Row]]:
        """Those of the first `count` rows that can be read, with their numbers."""
        rows = (numbered for block in self.blocks() for numbered in zip(block.numbers, block.rows(), strict=True))
        return ((number, row) for number, row in itertools.islice(rows, count) if isinstance(row, dict))


@dataclass(frozen=True)
class FileTable(Table):
    """A file of rows; its name is its path."""

    _hashed_state: list[str] = field(default_factory=list, compare=False, repr=False)  # one, or none yet

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def kind(self) -> str:
        """The suffixes that its reader goes by."""
        return "".join(one for one in self.path.suffixes if one.lower() in (*DATA_SUFFIXES, *COMPRESSIONS))

    def blocks(self) -> Iterator[SourceBlock]:
        kind = data_file_kind(self.path)
        assert kind is not None, self.path
        before = self._state()
        if is_lfs_pointer(self.path):
            raise UserError(f"{self.path} is a pointer of Git LFS, not the file itself: fetch it by `git lfs pull`.")
        try:
            yield from READERS[kind](self.path)
        except READ_ERRORS as error:
            raise UserError(f"{self.path} cannot be read: {error}.") from error
        self._check_state(before)

    def check_unchanged(self) -> None:
        for state in self._hashed_state:
            self._check_state(state)

    def _check_state(self, before: str) -> None:
        if self._state() != before:
            raise UserError(f"{self.path} changed while it was read: wait until it is written, then start again.")

    def content_hash(self, known: dict[str, str]) -> str:
        state = self._state()
        self._hashed_state[:] = [state]
        if state in known:
            return known[state]
        digest = xxhash.xxh3_128()
        try:
            with self.path.open("rb") as file:
                for chunk in iter(lambda: file.read(1 << 22), b""):
                    digest.update(chunk)
            has_settled = time.time() - self.path.stat().st_ctime > SETTLED_SECONDS
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error}.") from error
        if has_settled and self._state() == state:
            known[state] = digest.hexdigest()
        return digest.hexdigest()

    def _state(self) -> str:
        """Changes with the file. The last number is the time that no program can set back."""
        stat = self.path.stat()
        return f"{self.path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}|{stat.st_ctime_ns}"

    def row_name(self, number: int) -> str:
        return f"{self.path}:{number}"


@dataclass(frozen=True)
class DatasetTable(Table):
    """A loaded `datasets.Dataset`."""

    dataset: Any

    def blocks(self) -> Iterator[SourceBlock]:
        try:
            yield from read_dataset(self.dataset)
        except READ_ERRORS as error:
            raise UserError(f"{self.name} cannot be read: {error}.") from error

    def content_hash(self, known: dict[str, str]) -> str:
        digest = xxhash.xxh3_128(repr(self.dataset.features).encode())
        for batch in self.dataset.with_format("arrow").iter(batch_size=1000):
            for column in batch.columns:
                digest.update(_column_bytes(column))
        return digest.hexdigest()


@dataclass(frozen=True)
class ListTable(Table):
    """A sequence of dicts."""

    sequence: Any

    def blocks(self) -> Iterator[SourceBlock]:
        return read_objects(self.sequence)

    def content_hash(self, known: dict[str, str]) -> str:
        digest = xxhash.xxh3_128()
        for number, row in enumerate(self.sequence, start=1):
            try:
                text = json.dumps(row, sort_keys=False, default=str)
            except (ValueError, RecursionError) as error:  # a circle, or a number of thousands of digits
                raise UserError(f"{self.row_name(number)} cannot be read: {error}.") from error
            digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()


def _column_bytes(column: pa.ChunkedArray) -> bytes:
    """A column's content as an Arrow stream, free of where it lay in memory."""
    sink = pa.BufferOutputStream()
    table = pa.table({"c": pa.concat_arrays([pa.nulls(0, column.type), *column.chunks])})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def readable_rows(tables: Iterable[Table]) -> Iterator[Row]:
    """Every row of the tables; raises UserError of those that cannot be read."""
    bad_rows, num_rows = BadRows(max_bad_rows=0), 0
    for table in tables:
        for block in table.blocks():
            num_rows += len(block.numbers)
            for number, row in zip(block.numbers, block.rows(), strict=True):
                if isinstance(row, dict):
                    yield row
                else:
                    bad_rows.add(table.row_name(number), str(row))
            bad_rows.check(num_rows)
    bad_rows.check(num_rows, at_end=True)
