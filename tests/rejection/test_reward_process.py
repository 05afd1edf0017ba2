"""Whatever a thread is at when the stage ends: it is told, and waits for no process that nobody will kill."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import Future

import pytest

from openrlhf.errors import UserError
from openrlhf.rejection.rewards.function_reward import FunctionReward
from openrlhf.rejection.rewards.process import RewardProcess
from openrlhf.rejection.rewards.reward import CallFailed

ROW = {"prompt": "q", "response": "a"}
SECONDS_TO_BE_TOLD = 20.0


def function(tmp_path, body: str) -> str:
    path = tmp_path / "rewards.py"
    path.write_text(f"import os, time\ndef judge(completions, **columns):\n{body}\n")
    return f"{path}:judge"


def in_a_thread(call, *given) -> Future:
    """A future of a daemon thread: one that is stuck must not hold the tests."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(call(*given))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def wait_for(file) -> int:
    while not file.exists() or not file.read_text():
        time.sleep(0.01)
    return int(file.read_text())


def test_a_process_that_is_being_started_when_the_stage_ends_is_neither_waited_for_nor_left(tmp_path, monkeypatch):
    process = RewardProcess(function(tmp_path, "    time.sleep(1000)"), timeout_seconds=500.0)
    is_starting, start, started = threading.Event(), subprocess.Popen, []

    def start_slowly(*given, **named):
        is_starting.set()
        time.sleep(0.5)
        started.append(start(*given, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start_slowly)
    call = in_a_thread(process.call, [ROW])
    is_starting.wait()
    process.end()
    try:
        assert isinstance(call.exception(SECONDS_TO_BE_TOLD), UserError)
        assert [one.poll() for one in started] == [-signal.SIGKILL]
    finally:
        for one in started:
            one.kill()


def test_a_thread_that_comes_late_starts_no_process(tmp_path):
    reward = FunctionReward(function(tmp_path, "    return [1.0]"), timeout_seconds=500.0, rows_a_call=1)
    reward.close()
    with pytest.raises(UserError, match="the stage has ended"):
        reward.judge([ROW])


def test_a_thread_is_told_though_what_the_function_has_started_left_its_group(tmp_path):
    pid = tmp_path / "pid"
    body = f"""
    if os.fork() == 0:
        os.setsid()
        open({str(pid)!r}, "w").write(str(os.getpid()))
    time.sleep(1000)
"""
    process = RewardProcess(function(tmp_path, body), timeout_seconds=500.0)
    call = in_a_thread(process.call, [ROW])
    left = wait_for(pid)
    process.end()
    try:
        assert isinstance(call.exception(SECONDS_TO_BE_TOLD), CallFailed)
    finally:
        os.kill(left, signal.SIGKILL)
