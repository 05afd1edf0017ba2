"""What is told while data is prepared: by who makes it, by who waits for it, and where a process is killed."""

from __future__ import annotations

import io
import os
import signal

import pytest
from tqdm import tqdm

from openrlhf.datasets import cache, workers
from openrlhf.datasets import prepare as prepare_module
from tests.datasets.conftest import pairs, write_jsonl


def test_rows_are_counted_on_a_bar(tmp_path, prepare, monkeypatch):
    shown = []

    class Bar(tqdm):
        def close(self) -> None:
            shown.append((self.desc, self.unit, self.n))
            super().close()

    monkeypatch.setattr(prepare_module, "tqdm", lambda **look: Bar(**{**look, "disable": False, "file": io.StringIO()}))
    prepare(write_jsonl(tmp_path / "a.jsonl", pairs(600)), max_samples=530)
    assert ("preparing data", " rows", 530) in shown


@pytest.mark.parametrize(("rank", "told"), [("0", 1), ("1", 0)])
def test_who_waits_says_so_once(tmp_path, monkeypatch, caplog, rank: str, told: int):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(cache, "TELL_SECONDS", 0.0)
    (tmp_path / "key.lock").write_text("another-machine 1")
    wait = cache._Wait(tmp_path / "key.lock", tmp_path / "key.failed")
    wait.once()
    wait.once()
    assert caplog.text.count("Another process prepares the data") == told


def test_a_process_that_the_system_kills_is_told_in_words(tmp_path, problems, monkeypatch):
    monkeypatch.setattr(workers, "_encode_in_worker", _die)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {0, 1})
    said = problems(write_jsonl(tmp_path / "a.jsonl", pairs(2000)), num_processors=2)
    assert "ended from outside, mostly because memory ran out: lower --data.num_processors" in said


def _die(task: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
