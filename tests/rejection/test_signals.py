"""A signal that asks a command to leave is heard, whatever its threads wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from openrlhf.cli.entry import run_command
from openrlhf.config import ServeConfig
from openrlhf.exit_codes import EXIT_CODE_INTERRUPTED, EXIT_CODE_PREEMPTED
from openrlhf.rejection import reward_server
from openrlhf.rejection.engines.engine import Request, Sampling
from openrlhf.rejection.engines.openai_engine import OpenAIEngine
from openrlhf.rejection.prompts import Prompt
from openrlhf.rejection.rewards.reward import Reward, RewardVerdict
from openrlhf.rejection.score import _judged
from tests.rejection.scored import write
from tests.rejection.test_openai_engine import FakeServer, running
from tests.rejection.test_serving import free_port

SECONDS_TO_BE_HEARD = 20.0


@pytest.fixture
def heard() -> Iterator[threading.Event]:
    """Set once Python's handler of SIGINT has run."""
    event = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    yield event
    signal.signal(signal.SIGINT, before)


def signal_that_wakes_nobody() -> None:
    """To this thread: the main one waits on, as when a signal comes on its way into a wait."""
    time.sleep(0.5)  # until it waits
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


def test_a_signal_that_does_not_wake_the_scoring_is_heard(heard):
    class Waits(Reward):
        name = "waits"

        def judge(self, rows):
            signal_that_wakes_nobody()
            return [RewardVerdict(float(heard.wait(SECONDS_TO_BE_HEARD)))]

    (row,) = _judged([Waits()], [1.0], iter([{"prompt": "q", "response": "a"}]), workers=1)
    assert row["reward"] == 1.0


def test_a_signal_that_does_not_wake_the_asking_is_heard(heard):
    was_heard = []

    def wait(number: int, body: dict) -> str:
        signal_that_wakes_nobody()
        was_heard.append(heard.wait(SECONDS_TO_BE_HEARD))
        return "fine"

    with running(FakeServer()) as server:
        server.trouble = wait
        engine = OpenAIEngine(
            [server.url], "m", Sampling(1.0, 1.0, 8, None), concurrency=1, timeout_seconds=60.0, max_retries=0
        )
        list(engine.answers(iter([Request(Prompt("p", "q"), 0, 0)])))
        engine.close()
    assert was_heard == [True]


def test_scoring_leaves_while_a_server_is_at_its_answer(tmp_path):
    is_asked, may_answer = threading.Event(), threading.Event()

    def wait(number: int, body: dict) -> None:
        is_asked.set()
        may_answer.wait()

    source = write(tmp_path / "g.jsonl", [{"prompt": "q", "response": "a"}])
    words = ["--score.input", source, "--score.output", tmp_path / "out", "--score.timeout_seconds", "500"]
    with running(FakeServer()) as server:
        server.trouble = wait
        words += ["--score.reward", f"{server.url}/get_reward"]
        command = [sys.executable, "-m", "openrlhf.cli.score", *map(str, words)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                assert is_asked.wait(120)
                process.send_signal(signal.SIGINT)
                assert process.wait(SECONDS_TO_BE_HEARD) == EXIT_CODE_PREEMPTED
            finally:
                process.kill()
                may_answer.set()


def test_a_server_that_is_told_to_end_before_it_listens_ends(monkeypatch):
    uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    monkeypatch.setattr(reward_server, "_scorer_of", lambda config: type("Scorer", (), {"judged": list}))
    run, stuck = uvicorn.Server.run, []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run_late(self, sockets):
        def end() -> None:
            stuck.append(True)
            self.should_exit = True

        signal.raise_signal(signal.SIGTERM)
        timer = threading.Timer(SECONDS_TO_BE_HEARD, end)
        timer.start()
        run(self, sockets=sockets)
        timer.cancel()

    monkeypatch.setattr(uvicorn.Server, "run", run_late)
    try:
        reward_server.serve(ServeConfig(port=0))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not stuck


def test_a_request_that_a_server_drops_at_its_end_is_told_to_the_client_and_in_words(monkeypatch, capfd):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    may_end, port, answers = threading.Event(), free_port(), []
    listens, asking = reward_server._listen, threading.Thread(target=lambda: answers.append(ask()))

    def judged(items):
        os.kill(os.getpid(), signal.SIGTERM)
        may_end.wait(SECONDS_TO_BE_HEARD)
        return []

    def ask() -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{port}/get_reward", json={"query": ["a"]}, timeout=60)

    monkeypatch.setattr(reward_server, "_scorer_of", lambda config: type("Scorer", (), {"judged": judged}))

    def listen(*place):
        listening = listens(*place)
        asking.start()
        return listening

    monkeypatch.setattr(reward_server, "_listen", listen)
    monkeypatch.setattr(reward_server, "_SECONDS_TO_FINISH", 0.5)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        reward_server.serve(ServeConfig(port=port))
    finally:
        may_end.set()
        for number, handler in before.items():
            signal.signal(number, handler)
    asking.join()
    assert (answers[0].status_code, "the server ends" in answers[0].text) == (503, True)
    said = capfd.readouterr()
    assert "ended: 1 requests were not computed in time, and are answered so (503)" in said.out
    assert "Traceback" not in said.err


def test_a_command_that_saves_nothing_takes_ctrl_c_in_words(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["select"])
    with pytest.raises(SystemExit) as ended:
        run_command(interrupted)
    assert ended.value.code == EXIT_CODE_INTERRUPTED
    assert capsys.readouterr().err == "ended by Ctrl-C\n"
