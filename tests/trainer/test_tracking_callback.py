"""The peak of the memory is in the record of each step; that of a GPU is shown with stand-ins for CUDA's counters."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from openrlhf.parallel.groups import alone
from openrlhf.trainer.callbacks.preemption import Preempted
from openrlhf.trainer.callbacks.tracking import Tracking
from openrlhf.watchdog.watchdog import Watchdog


class Records(list):
    has_servers = False
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


@pytest.mark.parametrize("has_servers", [True, False])
def test_a_server_that_is_silent_is_waited_for_in_a_long_phase(has_servers):
    """Told at each step and each evaluation, on all ranks; without a server nothing of it costs anything."""
    watchdog = Watchdog()
    phases = []

    class Server(Records):
        def log_step(self, record):
            phases.append((watchdog._activity.what, watchdog._activity.is_long))

        log_eval = log_step

    server = Server()
    server.has_servers = has_servers
    strategy = SimpleNamespace(device=torch.device("cpu"), watchdog=watchdog, groups=alone())
    trainer = SimpleNamespace(strategy=strategy, take_logged=dict, take_answers=list, take_events=list)
    watchdog.note("step 1")
    Tracking(server).on_step_end(trainer, {"loss": 1.0})  # type: ignore[arg-type]
    watchdog.note("evaluation")
    Tracking(server).on_evaluate(trainer, {"eval_loss": 1.0})  # type: ignore[arg-type]
    long = ("handing numbers to the trackers", True)
    assert phases == ([long, long] if has_servers else [("step 1", False), ("evaluation", False)])


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "finished"), (Preempted(), "preempted"), (RuntimeError("no"), "failed")]
)
def test_a_tracker_hears_how_the_run_has_ended(error, outcome):
    heard = []
    tracker = SimpleNamespace(close=heard.append, log_answers=list)
    strategy = SimpleNamespace(watchdog=Watchdog(), groups=alone())
    trainer = SimpleNamespace(strategy=strategy, take_logged=dict, take_answers=list, take_events=list)
    Tracking(tracker).on_exit(trainer, error)  # type: ignore[arg-type]
    assert heard == [outcome]


def test_what_happened_in_a_step_comes_before_its_record():
    events = [{"global_step": 3, "out_of_memory": "backward pass, rank 0"}]
    told, record = step_recorded_on("cpu", events)
    assert [told] == events
    assert record["loss"] == 1.0
