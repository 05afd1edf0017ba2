"""The threads of a save: reports of ranks, and problems that reach the main thread."""

from __future__ import annotations

import time

import pytest

from openrlhf.checkpoint.background import PendingSave, RankReport, collect_reports, in_background, problem_of
from openrlhf.checkpoint.checkpointer import Checkpointer
from openrlhf.checkpoint.manifest import FileRecord
from openrlhf.checkpoint.store import CheckpointStore

RECORDS = [FileRecord("a", 1, "x")]


def fail():
    raise OSError("the disk is full")


def test_an_error_in_the_thread_reaches_the_thread_that_waits():
    assert problem_of(in_background(fail, "job")) == "OSError: the disk is full"
    assert problem_of(in_background(lambda: 3, "job")) is None


def test_records_of_all_ranks_are_collected_and_no_report_stays(tmp_path):
    for rank in (1, 0):
        RankReport([FileRecord(f"rank{rank}", 1, "x")]).write(tmp_path, rank)
    records = collect_reports(tmp_path, 2, lambda: False, timeout_seconds=1.0)
    assert [record.name for record in records] == ["rank0", "rank1"]
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_many_ranks_is_looking_at_one_folder(tmp_path, monkeypatch):
    """Opening a file of each rank that is missing, fifty times a second, would hold training up."""
    RankReport(RECORDS).write(tmp_path, 7)
    reads = []
    read = RankReport.read
    monkeypatch.setattr(
        RankReport, "read", classmethod(lambda cls, folder, rank: reads.append(rank) or read(folder, rank))
    )
    with pytest.raises(OSError, match="did not write their part"):
        collect_reports(tmp_path, 4096, lambda: False, timeout_seconds=0.3)
    assert reads == [7]


def test_a_rank_that_does_not_come_is_named(tmp_path):
    RankReport(RECORDS).write(tmp_path, 0)
    with pytest.raises(OSError, match=r"ranks \[1\] did not write their part"):
        collect_reports(tmp_path, 2, lambda: False, timeout_seconds=0.0)


def test_the_problem_of_a_rank_ends_the_save_and_removes_the_folder(tmp_path):
    store = CheckpointStore(tmp_path)
    staging = store.begin(1, size_bytes=1)
    RankReport([], "no space").write(staging, 1)

    def write_for_long():
        while staging.exists():
            time.sleep(0.01)
        return RECORDS

    save = PendingSave(store, staging, 0, 2, write_for_long, store.put_in_place, timeout_seconds=10.0)
    assert save.wait_for_end() == ([], "OSError: rank 1: no space")
    assert "FileNotFoundError" in save.wait_for_own_files()
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_fails_without_a_report_is_not_waited_for(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    staging = store.begin(1, size_bytes=1)
    checkpointer = Checkpointer(store)
    monkeypatch.setattr(RankReport, "write", lambda *_: None)
    checkpointer._pending = PendingSave(store, staging, 0, 2, fail, store.put_in_place, timeout_seconds=5.0)
    start = time.monotonic()
    report = checkpointer.wait()
    assert time.monotonic() - start < 2.0
    assert report.num_failures_in_a_row == 1
    assert not staging.exists()
