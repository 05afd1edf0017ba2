"""A reader sees the old file or the new one; nothing else is left beside it."""

from __future__ import annotations

import os

import pytest

from openrlhf.atomic_file import remove_leftovers, replace_file, replacing


@pytest.mark.parametrize(("content", "meant"), [("ä\n", "ä\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_text_and_bytes_take_the_place_of_what_was_there(content, meant, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    replace_file(path, content)
    assert path.read_bytes() == meant
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_until_the_end_of_the_block(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_error_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"):
        write_a_part_and_fail(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # its block ends last
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_the_rename_and_the_name_after(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda old, new: events.append("rename") or replace(old, new))
    replace_file(tmp_path / "file", "new")
    assert [event.partition(".")[0] for event in events] == [f"{tmp_path}/", "rename", str(tmp_path)]


def test_leftovers_of_this_file_alone_are_removed(tmp_path):
    for name in (".writing-latest.0a1b", ".writing-latest_hf.0a1b", ".writing-mine"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "latest")
    assert {path.name for path in tmp_path.iterdir()} == {".writing-latest_hf.0a1b", ".writing-mine"}


def write_a_part_and_fail(path):
    with replacing(path) as temporary:
        temporary.write_text("ne")
        raise OSError("the disk is full")
