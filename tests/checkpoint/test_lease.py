"""The lease on a folder: where the disk is full, and what a reader leaves to its owner."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from openrlhf.checkpoint import lease
from openrlhf.checkpoint.checkpointer import Checkpointer
from openrlhf.checkpoint.store import CheckpointStore


def test_a_full_disk_leaves_no_owner_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start would wait half a minute for its end."""
    with monkeypatch.context() as full_disk:
        full_disk.setattr(os, "write", lambda file, content: 0)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), lease.owning(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with lease.owning(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [lease.FILE_NAME]


def test_what_a_living_run_is_writing_is_no_leftover(tmp_path: Path) -> None:
    """A script that loads a running run's checkpoint would else remove the save that is being written."""
    staging = tmp_path / ".writing-global_step2"
    staging.mkdir()
    of_another_run = lease.Lease(tmp_path)
    of_another_run.acquire(print)
    found, problems = Checkpointer(CheckpointStore(tmp_path)).find()
    assert found is None
    assert staging.is_dir()
    assert f"process {os.getpid()}" in problems[0]
    of_another_run.release()
    with lease.owning(tmp_path):  # its own
        Checkpointer(CheckpointStore(tmp_path)).find()
    assert not staging.exists()


def test_leftovers_of_a_dead_run_are_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = tmp_path / ".writing-global_step2"
    staging.mkdir()
    with monkeypatch.context() as before:
        before.setattr(lease, "start_of", lambda pid: "another start")
        lease.Lease(tmp_path).acquire(print)
    Checkpointer(CheckpointStore(tmp_path)).find()
    assert not staging.exists()
