"""Folders of builds that machines share: apart by GPU, locked where flock fails, and nobody waits in turn."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading

import pytest
import torch

from openrlhf.build_folder import LOCK_NAME, keep_builds_apart, sole_builder
from openrlhf.engine import operators

SECONDS_TO_WAIT = 5


def folder_of(monkeypatch, capability, cuda="13.0"):
    """The name of the folder on a machine with such a GPU."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    keep_builds_apart()
    return os.environ["TORCH_EXTENSIONS_DIR"]


def test_gpus_of_two_kinds_do_not_share_builds(monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")  # put back at the end
    a100, h100 = folder_of(monkeypatch, (8, 0)), folder_of(monkeypatch, (9, 0))
    assert a100.endswith("-CUDA13.0-sm80")
    assert h100.endswith("-CUDA13.0-sm90")
    assert folder_of(monkeypatch, (9, 0), "12.6").endswith("-CUDA12.6-sm90")


@pytest.fixture
def flock_fails(monkeypatch, tmp_path):
    """As on Lustre without its option flock: for files in the shared folder."""
    shared = tmp_path / "shared"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(shared))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    flock = fcntl.flock

    def on_local_disks_alone(file, operation):
        if str(shared) in os.path.realpath(file.name):
            raise OSError(errno.ENOSYS, "Function not implemented")
        return flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", on_local_disks_alone)
    return shared


def test_where_flock_fails_each_machine_builds_for_itself_one_process_at_a_time(flock_fails):
    own = flock_fails / socket.gethostname()
    with sole_builder() as folder:
        assert folder == own
        (lock,) = flock_fails.parent.glob("openrlhf-*.lock")
        with lock.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with sole_builder() as folder:
        assert folder == own, "the second build of a process went elsewhere"


def test_ranks_do_not_wait_in_turn_for_what_is_built(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(operators, "load_built", lambda operator, library: True)
    place = tmp_path / "an_operator"
    place.mkdir()
    (place / "an_operator.so").touch()
    (place / operators.STAMP_NAME).write_text(operators._made_with())
    has_loaded = threading.Event()

    def load():
        with operators.sole_compiler("an_operator"):
            has_loaded.set()

    with open(tmp_path / LOCK_NAME, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another rank builds something
        rank = threading.Thread(target=load)
        rank.start()
        assert has_loaded.wait(SECONDS_TO_WAIT)
    rank.join()
