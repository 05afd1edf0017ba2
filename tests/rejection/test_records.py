"""What a stage leaves: rows are appended and kept, a torn one is stepped over, and another run's are refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from openrlhf.errors import UserError
from openrlhf.rejection.full_disk import keeps_on_a_full_disk
from openrlhf.rejection.records import (
    Identity,
    RowWriter,
    StoredRows,
    content_of,
    finish,
    is_finished,
    open_output,
    read_stats,
    shards,
)

IDENTITY = Identity("generate", {"generate.n": 2, "generate.top_p": 1.0}, "w1", {"data.dataset": "h1"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_output(tmp_path / "out", IDENTITY, "--generate.output")
    return tmp_path / "out"


def append(folder: Path, *rows: dict, name: str = "0") -> None:
    with RowWriter(folder, name) as shard:
        for row in rows:
            shard.append(row)


def test_rows_are_read_back_from_all_shards(folder: Path) -> None:
    rows = [{"x": 1, "text": "half a pair \ud800, a line\nfeed"}, {"x": 2}, {"x": 3}]
    append(folder, *rows[:2])
    append(folder, rows[2], name="1")
    assert list(StoredRows(folder)) == rows


def test_a_users_file_need_not_end_with_a_line_feed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\nno row\n{"x": 2}')
    rows = StoredRows(tmp_path / "a.jsonl")
    placed = list(rows.placed())
    assert [row for _, row in placed] == [{"x": 1}, {"x": 2}] == list(rows.at(place for place, _ in placed))
    assert (rows.num_rows, rows.num_torn) == (2, 1)


def test_a_row_is_in_the_file_before_the_writer_is_closed(folder: Path) -> None:
    with RowWriter(folder, "0") as shard:
        shard.append({"x": 1})
        assert list(StoredRows(folder)) == [{"x": 1}]


@pytest.mark.parametrize("torn", [b'{"x": 3', b'{"x": 3}', b"\xff", b"\x00" * 5000])
def test_a_torn_last_line_is_counted_and_cut_before_the_next_row(folder: Path, torn: bytes) -> None:
    append(folder, {"x": 1}, {"x": 2})
    with shards(folder)[0].open("ab") as file:
        file.write(torn)
    rows = StoredRows(folder)
    assert list(rows) == [{"x": 1}, {"x": 2}]
    assert rows.num_torn == 1
    append(folder, {"x": 4})
    assert list(rows) == [{"x": 1}, {"x": 2}, {"x": 4}]
    assert rows.num_torn == 0


def test_a_broken_line_in_the_middle_is_stepped_over_and_counted(folder: Path) -> None:
    append(folder, {"x": 1})
    with shards(folder)[0].open("ab") as file:
        file.write(b'{"x": \n[1]\n')
    append(folder, {"x": 2})
    rows = StoredRows(folder)
    assert list(rows) == [{"x": 1}, {"x": 2}]
    assert rows.num_torn == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {"generate.n": 3, "generate.top_p": 1.0}}, "--generate.n was 2 and is 3"),
        ({"weights": "w2"}, "the model's weights is another"),
        ({"inputs": {"data.dataset": "h2"}}, "the content of data.dataset is another"),
        ({"stage": "score"}, "it is of the stage generate"),
    ],
)
def test_the_output_of_another_run_is_refused_in_a_sentence(folder: Path, change: dict, words: str) -> None:
    open_output(folder, IDENTITY, "--generate.output")  # the same run goes on
    with pytest.raises(UserError) as error:
        open_output(folder, dataclasses.replace(IDENTITY, **change), "--generate.output")
    (sentence,) = error.value.problems
    assert "is the output of another run: " + words in sentence


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no empty folder and no output"):
        open_output(tmp_path, IDENTITY, "--generate.output")


def test_a_damaged_manifest_is_told(folder: Path) -> None:
    whole = (folder / "manifest.json").read_text().rstrip("}\n")
    for damaged in ('{"format": 1', f'{whole}, "files": 5}}', f'{whole}, "files": {{"rows-0.jsonl": [1]}}}}'):
        (folder / "manifest.json").write_text(damaged)
        with pytest.raises(UserError, match="no manifest of a stage that can be read"):
            open_output(folder, IDENTITY, "--generate.output")


def test_a_manifest_that_is_removed_in_the_midst_is_told(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json has been removed"):
        finish(folder, {})


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_is_closed_in_the_midst_is_told(number: int) -> None:
    @keeps_on_a_full_disk
    def stage() -> None:
        raise OSError(number, os.strerror(number), "out/report.html")

    with pytest.raises(UserError, match=r"out/report\.html cannot be opened: .*\. All rows so far are kept: let it be"):
        stage()


def test_a_stage_is_finished_when_it_said_so_and_its_rows_are_there(folder: Path) -> None:
    append(folder, {"x": 1})
    with pytest.raises(UserError, match="not the output of a finished stage"):
        content_of(folder)
    finish(folder, {"num_rows": 1})
    assert json.loads((folder / "stats.json").read_text()) == {"num_rows": 1}
    assert is_finished(folder)
    before = content_of(folder)
    append(folder, {"x": 2})
    assert not is_finished(folder)
    finish(folder, {"num_rows": 2})
    assert content_of(folder) != before
    (folder / "stats.json").write_text("")
    assert not is_finished(folder)
    with pytest.raises(UserError, match=r"stats\.json cannot be read: start the command that writes it again"):
        read_stats(folder)


def test_rows_that_have_changed_since_their_stage_was_finished_are_refused(folder: Path) -> None:
    append(folder, {"x": 1})
    finish(folder, {"num_rows": 1})
    shards(folder)[0].write_text(shards(folder)[0].read_text().replace("1", "2"))
    with pytest.raises(UserError, match=r"rows-0\.jsonl has changed since its stage was finished: put it back, or"):
        content_of(folder)


def test_a_shard_has_one_writer(folder: Path) -> None:
    with RowWriter(folder, "0"), pytest.raises(UserError, match="written by another process"):
        RowWriter(folder, "0")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_and_what_was_written_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = RowWriter(folder, "0")
    shard.append({"x": 1})
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(shard, "_file", _Full(shard._file, full))
        with pytest.raises(
            UserError, match=r"rows-0.jsonl cannot .* No space left on device\. All rows so far are kept"
        ):
            keeps_on_a_full_disk(shard.append)({"x": 2})
    assert list(rows := StoredRows(folder)) == [{"x": 1}]
    assert rows.num_torn == 0


class _Full:
    """A file that takes half of a line, and then says what the system says of a full disk."""

    def __init__(self, file, full):
        self._file, self._full, self._is_full = file, full, False

    def write(self, data: bytes) -> int:
        if self._is_full:
            return self._full.write(data)
        self._is_full = True
        return self._file.write(data[: len(data) // 2])

    def truncate(self, size: int) -> None:
        self._file.truncate(size)
