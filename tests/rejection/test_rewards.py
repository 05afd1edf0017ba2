"""Rewards one by one: exact answers, math-verify, a server that is slow, wrong, away for a while, or gone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from openrlhf.config import ScoreConfig, ScoreSettings
from openrlhf.errors import UserError
from openrlhf.rejection import server_answer
from openrlhf.rejection.records import StoredRows
from openrlhf.rejection.rewards import server_reward
from openrlhf.rejection.rewards.exact_reward import ExactReward
from openrlhf.rejection.rewards.function_reward import FunctionReward
from openrlhf.rejection.rewards.reward import RewardVerdict
from openrlhf.rejection.rewards.server_reward import ServerReward
from openrlhf.rejection.score import score
from tests.rejection.scored import write


def row(response: str, label: object = None, prompt: object = "q?") -> dict:
    return {"prompt": prompt, "response": response, "label": label}


@pytest.mark.parametrize(
    ("response", "label", "value"),
    [
        (" 72\n", "72", 1), ("72.0", 72, 1), ("+72", "72", 1), ("1,000", 1000, 1), ("1e3", "1000", 1), (".5", 0.5, 1),
        ("yes", " yes ", 1), ("Yes", "yes", 0), ("73", "72", 0), ("72 apples", "72", 0), ("", "0", 0),
        ("10,00", "1000", 0), ("true", True, 1), ("nan", "nan", 1), ("0.1", 0.1, 1), ("0.10000000000000001", "0.1", 0),
        ("\u0667", "7", 0), ("e5", "5", 0), ("+e4", "+e4", 1), ("5", "e5", 0),
        ("x", None, None), ("[1, 2]", [1, 2], 1),
    ],
)  # fmt: skip
def test_exact_answers_are_the_same_text_or_the_same_number(response, label, value):
    (verdict,) = ExactReward().judge([row(response, label)])
    assert verdict == (RewardVerdict(None, "the row has no label") if value is None else RewardVerdict(value))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (urllib.error.URLError(TimeoutError("timed out")), "cannot be reached"),  # a host that drops all packets
        (TimeoutError("timed out"), "gives no rewards: no verdict within 5 s"),
    ],
)
def test_a_server_that_is_gone_and_one_that_is_late_are_told_apart(monkeypatch, error, words):
    monkeypatch.setattr(ServerReward, "_post", lambda self, body: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=words):
        ServerReward("http://gone", 5, 64).judge([row("a")])


@pytest.fixture(scope="module")
def math():
    pytest.importorskip("math_verify")
    reward = FunctionReward("math", timeout_seconds=2.0, rows_a_call=1)
    yield reward
    reward.close()


def test_math_verify_judges_by_value(math):
    rows = [
        row("So it is $\\frac{2}{4}$.", "\\frac{1}{2}"), row("\\boxed{72}", "#### 72"), row("The answer is 73.", "72"),
        row("I do not know", "72"), row("72", None), row("$x+1$", "1+x"), row("so 1", "1+x"),
        row("5", "She has 2+3 = 5 of them #### 5"), row("5", "The answer is $5$"), row("5", "The answer is 5"),
    ]  # fmt: skip
    assert [verdict.value for verdict in math.judge(rows)] == [1, 1, 0, 0, None, 1, 0, 1, 1, 1]


def test_math_that_does_not_end_is_no_verdict_and_the_next_answer_is_judged(math):
    endless, fine = math.judge([row("$9^{9^{9^{9}}}$", "$8^{8^{8^{8}}}$"), row("5", "5")])
    assert (endless.value, fine.value) == (None, 1)


@contextmanager
def served(answer):
    """A server that gives what `answer(content, number of the call)` gives: JSON, bytes as they are, blocks of them, or
    a tuple of a status, one of these, and headers.
    """
    calls = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            calls.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            found = answer(calls[-1], len(calls))
            status, content, *headers = found if isinstance(found, tuple) else (200, found)
            self.send_response(status)
            for name, value in headers[0].items() if headers else ():
                self.send_header(name, value)
            self.end_headers()
            for block in content if isinstance(content, Iterator) else [content]:
                self.wfile.write(block if isinstance(block, bytes) else json.dumps(block).encode())

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *words: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/get_reward", calls
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(server_reward, "SECONDS_BEFORE_RETRIES", (0.01, 0.01))


def lengths(content):
    return {"rewards": [float(len(text)) for text in content["query"]], "scores": [], "extra_logs": {}}


def test_a_server_is_asked_as_openrlhf_asks(monkeypatch):
    chat = [{"role": "user", "content": "Hi"}]
    with served(lambda content, call: lengths(content)) as (url, calls):
        reward = ServerReward(url, 5, 64)
        verdicts = reward.judge([row("a", "x"), row("bc", None, chat)])
        parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
        in_parts = [[{"role": "user", "content": parts}], [{"from": "human", "value": "Hi"}]]
        image = [{"role": "user", "content": [{"type": "image"}]}]
        *same, unread = reward.judge([row("bc", None, prompt) for prompt in (*in_parts, image)])
    assert same == [RewardVerdict(5.0)] * 2
    assert unread.reason.startswith("message 1 of the prompt: part 1 of its content, of type 'image', has 'type'")
    asked = {"query": ["q?a", "Hi\nbc"], "prompts": ["q?", "Hi\n"], "labels": ["x", None]}
    assert calls[:1] == [asked | {"conversations": [None, {"prompt": chat, "response": "bc"}]}]
    assert verdicts == [RewardVerdict(3.0), RewardVerdict(5.0)]


def test_another_query_of_an_address_is_another_reward(tmp_path):
    """It names the model; a token may stand there too, so it stands in no file itself."""
    out = tmp_path / "scores"
    source = write(tmp_path / "answers.jsonl", [row("a"), row("bc")])
    with served(lambda content, call: lengths(content)) as (url, calls):
        first, other = (
            ScoreConfig(ScoreSettings(str(source), str(out), f"{url}?model={model}")) for model in ("one", "two")
        )
        assert score(first) == score(first)
        with pytest.raises(UserError, match="the content of the reward http://.*/get_reward is another"):
            score(other)
    assert len(calls) == 1
    assert not any("model=" in path.read_text() for path in out.iterdir())


def test_a_server_that_goes_on_with_another_model_ends_the_stage(tmp_path):
    """And each later start, until the first model is back."""
    source, out = write(tmp_path / "answers.jsonl", [row("a" * n) for n in range(1, 7)]), tmp_path / "scores"
    says = {"fingerprint": "first"}

    def answer(content, call):
        if call == 3:
            says["fingerprint"] = "second"
        return lengths(content) | says

    with served(answer) as (url, _):
        config = ScoreConfig(ScoreSettings(str(source), str(out), url, workers=1, batch_size=1))
        for next_ in ("second", None, "first"):
            with pytest.raises(UserError, match="answers by another model, or with other settings, than have judged"):
                score(config)
            assert [one["reward"] for one in StoredRows(out)] == [3.0, 4.0]
            says["fingerprint"] = next_
        assert score(config)["num_scored"] == 6


def test_a_server_that_is_away_for_a_while_is_asked_again():
    with served(lambda content, call: (503, {}) if call < 3 else lengths(content)) as (url, calls):
        assert ServerReward(url, 5, 64).judge([row("a")]) == [RewardVerdict(3.0)]
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("nonsense", "reason"),
    [
        ((400, {}), "the server answers 400 Bad Request"),
        ((500, {}), "the server answers 500 Internal Server Error"),
        (b"<html>", "the server's answer cannot be read: Expecting value: line 1 column 1 (char 0)"),
        ({"rewards": [1] * 7}, "returned 7 numbers for 1 answers"),
        ({"rewards": [float("nan")]}, "returned nan"),
        (b'{"rewards": [1' + b"0" * 400 + b"]}", "returned a number that no float holds"),
        (b"[" * 99_999, "the server's answer cannot be read: maximum recursion depth exceeded"),
        ({}, "returned NoneType where a list of numbers belongs"),
    ],
)
def test_an_answer_that_a_server_fails_at_spoils_no_other(nonsense, reason):
    def answer(content, call):
        return nonsense if "q?poison" in content["query"] else lengths(content)

    with served(answer) as (url, _):
        verdicts = ServerReward(url, 5, 64).judge([row("a"), row("poison"), row("bc")])
    assert [one.value for one in verdicts] == [3.0, None, 4.0]
    assert verdicts[1].reason.startswith(reason)


STEADY = [(500, {}), (503, {}), (408, {}), (425, {}), (429, {}), (501, {}), b"<html>", b'{"rewards": [1', "late"]


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("failure", STEADY)
def test_a_server_that_fails_at_all_it_is_asked_ends_the_stage_which_goes_on(tmp_path, failure, batch_size):
    """No answer is noted as failed, neither before the first that is judged nor behind it."""
    source, out = write(tmp_path / "answers.jsonl", [row("a" * n) for n in range(1, 7)]), tmp_path / "scores"
    num_judged = 0  # calls, and then it fails

    def answer(content, call):
        nonlocal num_judged
        num_judged -= 1
        if num_judged < 0:
            return failure if failure != "late" else time.sleep(0.3) or {}
        return lengths(content)

    settings = ScoreSettings(str(source), str(out), workers=1, batch_size=batch_size, timeout_seconds=0.1)
    with served(answer) as (url, calls):
        config = ScoreConfig(dataclasses.replace(settings, reward=url))
        for judged in ([], [3.0, 4.0] if batch_size == 1 else []):
            num_judged = len(judged)
            with pytest.raises(UserError, match=r"gives no rewards: .*\.\nWhat is scored is kept"):
                score(config)
            assert [one["reward"] for one in StoredRows(out)] == judged
        assert len(calls) < 25
        num_judged = 9
        assert score(config)["num_scored"] == 6


def test_an_answer_that_a_server_fails_at_alone_is_behind_those_that_it_has_judged():
    """Also where its prompt is what the server fails at; and where it comes first, its prompt is asked about alone."""
    with served(lambda content, call: (500, {}) if "poison" in content["query"][0] else lengths(content)) as (url, _):
        reward = ServerReward(url, 5, 1)
        assert reward.judge([row("poison")])[0].value is None
        assert reward.judge([row("a")]) == [RewardVerdict(3.0)]
        assert reward.judge([row("b", prompt="poison")])[0].value is None


def test_a_server_that_fails_at_empty_answers_judges_the_others():
    """Before it has judged any: a batch with a bad answer says nothing of the server."""
    fails = {"q?poison", "q?"}
    with served(lambda content, call: (500, {}) if fails & {*content["query"]} else lengths(content)) as (url, _):
        verdicts = ServerReward(url, 5, 64).judge([row("poison"), row("poison"), row("a")])
    assert [one.value for one in verdicts] == [None, None, 3.0]


def test_a_server_that_sends_a_bit_now_and_then_is_given_up():
    def drip():
        for _ in range(40):
            yield b" "
            time.sleep(0.05)

    start = time.monotonic()
    with (
        served(lambda content, call: drip()) as (url, _),
        pytest.raises(UserError, match=r"no verdict within 0\.2 s"),
    ):
        ServerReward(url, 0.2, 64).judge([row("a")])
    assert time.monotonic() - start < 4, "three tries and a probe, and one alone would take 2 s"


def test_an_answer_of_more_than_memory_is_given_up(monkeypatch):
    monkeypatch.setattr(server_answer, "MAX_ANSWER_BYTES", 1 << 17)
    said = "the server's answer cannot be read: it has more than 131,072 bytes"
    with (
        served(lambda content, call: itertools.repeat(b" " * (1 << 16), 64)) as (url, _),
        pytest.raises(UserError, match=said),
    ):
        ServerReward(url, 30, 64).judge([row("a")])


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_server_that_has_moved_is_told(status):
    """And the other address is not asked, for which a question would be sent without its content."""
    told = rf"sends elsewhere \(status {status}\), to http://other/get_reward: give"
    moved = (status, {}, {"Location": "http://me:secret@other/get_reward?key=x"})
    with served(lambda content, call: moved) as (url, calls), pytest.raises(UserError, match=told):
        ServerReward(url, 5, 64).judge([row("a")])
    assert len(calls) == 1


def test_an_address_without_a_server_of_rewards_ends_the_stage_and_is_asked_again(tmp_path):
    """Its answers are not noted as failed, whatever the server is like later."""
    source, out = write(tmp_path / "answers.jsonl", [row("a"), row("bc")]), tmp_path / "scores"
    with served(lambda content, call: (404, {}) if call <= 3 else lengths(content)) as (url, _):
        config = ScoreConfig(ScoreSettings(str(source), str(out), url))
        with pytest.raises(
            UserError, match=r"gives no rewards: the server answers 404 Not Found\.\nWhat is scored is kept"
        ):
            score(config)
        assert score(config)["num_scored"] == 2


def test_a_server_that_is_gone_ends_the_stage_in_words():
    with served(lambda content, call: {}) as (url, _):
        pass
    with pytest.raises(
        UserError, match=r"cannot be reached: .*refused.*\.\nWhat is scored is kept: look after the server"
    ):
        ServerReward(url, 1, 64).judge([row("a")])
