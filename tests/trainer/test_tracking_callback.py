"""The peak of the memory is in the record of each step; that of a GPU is shown with stand-ins for CUDA's counters."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from openrlhf.trainer.callbacks.tracking import Tracking


class Records(list):
    log_step = log_event = list.append
    log_answers = list.extend


def test_gpu_memory_is_the_peak_since_the_last_step(monkeypatch):
    resets: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    assert step_recorded_on("cuda") == [{"loss": 1.0, "gpu_memory_bytes": 123}]
    assert len(resets) == 1, "each step's peak is its own"


def test_without_a_gpu_it_is_the_peak_of_the_process():
    (before,), held = step_recorded_on("cpu"), torch.zeros(2**27, dtype=torch.uint8)
    (after,) = step_recorded_on("cpu")
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    assert before.keys() == {"loss", "host_memory_bytes"}
    assert before["host_memory_bytes"] <= after["host_memory_bytes"]
    assert after["host_memory_bytes"] >= held.nbytes
    assert after["host_memory_bytes"] == pytest.approx(peak, rel=0.05)


def step_recorded_on(device, events=()):
    """What is logged at the end of a step."""
    strategy = SimpleNamespace(device=torch.device(device))
    trainer = SimpleNamespace(strategy=strategy, take_logged=dict, take_answers=list, take_events=lambda: list(events))
    records = Records()
    Tracking(records).on_step_end(trainer, {"loss": 1.0})  # type: ignore[arg-type]
    return records


def test_what_happened_in_a_step_comes_before_its_record():
    events = [{"global_step": 3, "out_of_memory": "backward pass, rank 0"}]
    told, record = step_recorded_on("cpu", events)
    assert [told] == events
    assert record["loss"] == 1.0
