"""The lease on a folder, where the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from openrlhf.checkpoint import lease


def test_a_full_disk_leaves_no_owner_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start would wait half a minute for its end."""
    with monkeypatch.context() as full_disk:
        full_disk.setattr(os, "write", lambda file, content: 0)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), lease.owning(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with lease.owning(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [lease.FILE_NAME]
