"""A folder of checkpoints that not all machines see is refused before a run trains for nothing."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openrlhf.checkpoint import shared_folder
from tests.checkpoint import saving_cases
from tests.helpers.ranks import RankPool

PoolOf = Callable[[int], RankPool]
REFUSED = f"{socket.gethostname()} (rank 1) cannot see what rank 0 writes into ck"


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[str, str]:
    """Of two machines, that of rank 0 first."""
    for name in ("of_0", "of_1"):
        (tmp_path / name).mkdir()
    return str(tmp_path / "of_0"), str(tmp_path / "of_1")


def test_a_run_that_is_to_save_is_refused_on_all_ranks(pool_of: PoolOf, two_folders: tuple[str, str]) -> None:
    for refused, _ in pool_of(2).run(saving_cases.begin_in_folders, *two_folders, save_steps=2):
        assert refused.startswith(REFUSED)
        assert "--ckpt.path" in refused
    for refused, _ in pool_of(2).run(saving_cases.begin_in_folders, *two_folders, must_save=True):
        assert refused.startswith(REFUSED)
    for refused in pool_of(2).run(saving_cases.save_by_name_in_folders, *two_folders):
        assert refused.startswith(REFUSED)


def test_a_run_that_saves_when_asked_to_leave_is_told(pool_of: PoolOf, two_folders: tuple[str, str]) -> None:
    for refused, said in pool_of(2).run(saving_cases.begin_in_folders, *two_folders):
        assert refused == ""
        assert REFUSED in said[0]


@pytest.mark.parametrize("error", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_folder_that_cannot_be_looked_at_is_not_shared(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """A rank that raised would leave the others in a collective."""

    def cannot_look(*_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(shared_folder, "_SECONDS_TO_SEE", 0.0)
    monkeypatch.setattr(os, "stat", cannot_look)
    assert not shared_folder._is_seen(Path("mark"))


@pytest.mark.parametrize(("is_shared", "settings"), [(True, {"save_steps": 2}), (False, {"disable_ds": True})])
def test_all_else_is_let_through_in_silence(
    pool_of: PoolOf, two_folders: tuple[str, str], is_shared: bool, settings: dict[str, Any]
) -> None:
    folders = (two_folders[0], two_folders[not is_shared])
    assert pool_of(2).run(saving_cases.begin_in_folders, *folders, **settings) == [("", []), ("", [])]
    assert not list(Path(folders[0]).glob("ck/*")), "what is written to be seen goes away"
