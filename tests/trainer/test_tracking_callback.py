"""The memory of a GPU is in the record of each step, where there is one; shown with stand-ins for CUDA's counters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from openrlhf.trainer.callbacks.tracking import Tracking


class Records(list):
    log_step = log_event = list.append
    log_answers = list.extend


@pytest.mark.parametrize(("device", "expected"), [("cuda", {"gpu_memory_bytes": 123}), ("cpu", {})])
def test_gpu_memory_is_the_peak_since_the_last_step(monkeypatch, device, expected):
    resets = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    strategy = SimpleNamespace(device=torch.device(device))
    trainer = SimpleNamespace(strategy=strategy, take_logged=dict, take_answers=list, take_events=list)
    records = Records()
    Tracking(records).on_step_end(trainer, {"loss": 1.0})  # type: ignore[arg-type]
    assert records == [{"loss": 1.0} | expected]
    assert len(resets) == len(expected), "each step's peak is its own"


def test_what_happened_in_a_step_comes_before_its_record():
    events = [{"global_step": 3, "out_of_memory": "backward pass, rank 0"}]
    strategy = SimpleNamespace(device=torch.device("cpu"))
    trainer = SimpleNamespace(strategy=strategy, take_logged=dict, take_answers=list, take_events=lambda: events)
    records = Records()
    Tracking(records).on_step_end(trainer, {"global_step": 3, "loss": 1.0})  # type: ignore[arg-type]
    assert records == [*events, {"global_step": 3, "loss": 1.0}]
