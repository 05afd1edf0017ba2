"""What is told while data is prepared: by who makes it, by who waits for it, and where a process is killed."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from openrlhf.datasets import cache, workers
from openrlhf.datasets import prepare as prepare_module
from openrlhf.processes import start_of
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_processes_that_tokenize_end_with_the_one_that_started_them(tmp_path, monkeypatch, number):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {0, 1})
    maker = multiprocessing.get_context("fork").Process(target=_encode_for_a_minute, args=(tmp_path,))
    maker.start()
    assert _within_seconds(lambda: len(list(tmp_path.iterdir())) == 2)
    os.kill(maker.pid, number)
    maker.join()
    started = [int(path.name) for path in tmp_path.iterdir()]
    try:
        assert _within_seconds(lambda: not any(map(start_of, started)))
    finally:
        for pid in filter(start_of, started):
            os.kill(pid, signal.SIGKILL)


def _encode_for_a_minute(folder: Path) -> None:
    """Leaves a file named by each process that encodes beside this one."""
    maker = os.getpid()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # as a command does

    def encode(task: object) -> None:
        if os.getpid() != maker:
            (folder / str(os.getpid())).touch()
            time.sleep(60)

    list(workers.encode_blocks(iter(range(9)), encode, num_processors=2))


def _within_seconds(is_so) -> bool:
    until = time.monotonic() + 20
    while not is_so() and time.monotonic() < until:
        time.sleep(0.05)
    return is_so()
