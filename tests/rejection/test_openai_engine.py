"""Answers of OpenAI-compatible servers, which fail in all the ways that servers fail."""

from __future__ import annotations

import gzip
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from openrlhf.config import ScoreConfig, ScoreSettings
from openrlhf.errors import UserError
from openrlhf.rejection import server_answer
from openrlhf.rejection.engines import openai_engine
from openrlhf.rejection.engines.engine import Generation, Request, Sampling
from openrlhf.rejection.engines.openai_engine import OpenAIEngine
from openrlhf.rejection.generate import _answer_ranges, generate
from openrlhf.rejection.prompts import Prompt, Prompts
from openrlhf.rejection.records import LEFT_OUT, StoredRows, shards
from openrlhf.rejection.score import score
from tests.rejection.stand_in import generate_config, stored

ROWS = [{"prompt": f"question {number}"} for number in range(6)]


class FakeServer:
    """Answers each request by its seed, unless `trouble` says otherwise: a status, a body (JSON, bytes, blocks of them)
    and headers; or None to hang up.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self.trouble: Callable[[int, dict[str, Any]], Any] = lambda number, body: "fine"
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "m"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.asked.append((self.path, body))
                    server.headers.append(dict(self.headers))
                    number = len(server.asked)
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                try:
                    trouble = server.trouble(number, body)
                finally:
                    with server._lock:
                        server._at_once -= 1
                if trouble is None:
                    self.close_connection = True
                    self.connection.close()
                elif trouble == "fine":
                    self._send(200, answer(body))
                else:
                    self._send(*trouble)

            def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                is_whole = not isinstance(body, Iterator)
                raw = body if isinstance(body, bytes) or not is_whole else json.dumps(body).encode()
                ends = ("Content-Length", str(len(raw))) if is_whole else ("Connection", "close")
                self.send_response(status)
                for name, value in (*(headers or {}).items(), ends):
                    self.send_header(name, value)
                self.end_headers()
                for block in [raw] if is_whole else raw:
                    self.wfile.write(block)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up too
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


def answer(body: dict[str, Any]) -> dict[str, Any]:
    text = f"answer {body['seed']}"
    said = {"message": {"content": text}} if "messages" in body else {"text": text}
    return {"choices": [{**said, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}


@contextmanager
def running(server: FakeServer) -> Iterator[FakeServer]:
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(openai_engine, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with running(FakeServer()) as one:
        yield one


def run(tmp_path: Path, url: str, *flags: str, rows: list | None = None) -> list[dict[str, Any]]:
    given = ("--generate.engine", "openai", "--generate.url", url, "--generate.n", "2", "--generate.max_retries", "3")
    generate(generate_config(tmp_path, ROWS if rows is None else rows, *given, *flags, model="m"))
    return stored(tmp_path / "out")


def engine_of(server: FakeServer, concurrency: int, max_new_tokens: int = 4) -> OpenAIEngine:
    return OpenAIEngine([server.url], "m", Sampling(1.0, 1.0, max_new_tokens, None), concurrency, 5.0, 3)


def check_whole(rows: list[dict[str, Any]]) -> None:
    assert len({(row["prompt_id"], row["sample_index"]) for row in rows}) == len(rows) == 12
    assert all(row["response"] == f"answer {row['seed']}" for row in rows)


def test_one_request_an_answer_with_its_own_seed_and_within_the_bound(tmp_path: Path, server: FakeServer) -> None:
    barrier = threading.Barrier(3)

    def wait_for_three(number: int, body: dict) -> str:
        barrier.wait(timeout=20)
        return "fine"

    server.trouble = wait_for_three
    check_whole(run(tmp_path, server.url, "--generate.concurrency", "3"))
    assert server.most_at_once == 3
    assert {path for path, _ in server.asked} == {"/v1/completions"}
    assert len({body["seed"] for _, body in server.asked}) == len(server.asked) == 12
    _, body = server.asked[0]
    assert (body["model"], body["n"], body["temperature"], body["top_p"], body["max_tokens"]) == (
        "m",
        1,
        1.0,
        1.0,
        1024,
    )


def test_messages_and_tools_go_to_the_chat_endpoint(tmp_path: Path, server: FakeServer) -> None:
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    server.trouble = lambda number, body: (200, {"choices": [choice]})
    rows = [{"messages": [{"role": "user", "content": "what time is it?"}], "tools": [tool]}]
    found = run(tmp_path, server.url + "/v1/", rows=rows)
    path, body = server.asked[0]
    assert (path, body["messages"], body["tools"]) == ("/v1/chat/completions", rows[0]["messages"], [tool])
    assert [(row["response"], row["tool_calls"], row["num_tokens"]) for row in found] == [("", [call], None)] * 2


@pytest.mark.parametrize("calls", ["zzz", {"function": {}}, ["zzz"]])
def test_calls_that_are_no_list_of_calls_are_no_answer(server: FakeServer, calls: Any) -> None:
    """Nobody could select or train on it."""
    message = {"content": "x", "tool_calls": calls}
    server.trouble = lambda number, body: (200, {"choices": [{"message": message, "finish_reason": "stop"}]})
    asked = Request(Prompt("a", [{"role": "user", "content": "hi"}]), 0, 7)
    with pytest.raises(UserError, match="an answer that is none"):
        list(engine_of_one_try(server, 5.0).answers(iter([asked])))


def test_calls_of_a_conversation_are_sent_as_the_protocol_has_them(tmp_path: Path, server: FakeServer) -> None:
    """Their arguments are text, whatever the row holds."""
    calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]
    messages = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]
    run(tmp_path, server.url, rows=[{"messages": messages}])
    sent = server.asked[0][1]["messages"][1]["tool_calls"][0]
    assert sent == {**calls[0], "function": {"name": "add", "arguments": '{"a": 2}'}}
    assert stored(tmp_path / "out")[0]["prompt"][1]["tool_calls"] == calls


@pytest.mark.parametrize(
    "trouble",
    [
        None,
        (500, {"error": {"message": "out of memory"}}),
        (429, {"error": "slow down"}),
        (503, b"<html>starting</html>"),
        (200, b"<html>a proxy</html>"),
        (200, {"choices": []}),
        (200, {"choices": [{"text": None, "finish_reason": "stop"}]}),
        (200, {"choices": [{"text": "cut", "finish_reason": None}]}),
        (200, {"choices": [{"text": "cut", "finish_reason": "abort"}]}),
        (200, [1]),
        (200, b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n'),
        (200, b'{"choices": [{"text": "a", "fin'),
        (200, b"[" * 99_999),
        (200, b'{"choices": [{"text": "half \\ud83d", "finish_reason": "stop"}]}'),
    ],
    ids=["hangs up", "500", "429", "503", "proxy", "no choice", "no text", "no end", "given up", "a list", "a stream"]
    + ["half of it", "nested", "half a surrogate pair"],
)
def test_failures_that_pass_are_tried_again(tmp_path: Path, server: FakeServer, trouble: Any) -> None:
    server.trouble = lambda number, body: trouble if number in (1, 2, 5) else "fine"
    check_whole(run(tmp_path, server.url))


def test_what_a_server_does_not_count_is_not_told_as_zero(tmp_path: Path, server: FakeServer) -> None:
    def uncounted(number: int, body: dict[str, Any]) -> Any:
        return 200, {**answer(body), "usage": [None, {"completion_tokens": "3"}, {"completion_tokens": -1}][number % 3]}

    server.trouble = uncounted
    assert {row["num_tokens"] for row in run(tmp_path, server.url)} == {None}
    assert "tokens" not in (tmp_path / "out/report.html").read_text()
    assert json.loads((tmp_path / "out/stats.json").read_text())["mean_tokens"] is None
    (tmp_path / "rewards.py").write_text("def one(completions): return [1.0]\n")
    settings = ScoreSettings(str(tmp_path / "out"), str(tmp_path / "scores"), f"{tmp_path / 'rewards.py'}:one")
    stats = score(ScoreConfig(score=settings))
    assert stats["length_unit"] == "characters"
    assert stats["lengths"]["kept"]["mean"] > 6


def test_a_thought_that_is_cut_off_is_an_answer_without_text(tmp_path: Path, server: FakeServer) -> None:
    message = {"content": None, "reasoning_content": "Let me think"}
    server.trouble = lambda *_: (200, {"choices": [{"message": message, "finish_reason": "length"}]})
    found = run(tmp_path, server.url, rows=[{"messages": [{"role": "user", "content": "why?"}]}])
    assert [(row["response"], row["reasoning_content"], row["finish_reason"]) for row in found] == [
        ("", "Let me think", "length")
    ] * 2


def test_a_server_that_dies_keeps_what_came_and_another_goes_on(tmp_path: Path, server: FakeServer) -> None:
    server.trouble = lambda number, body: "fine" if number <= 5 else None
    with pytest.raises(UserError, match=r"No answer after 4 tries.*All answers so far are kept") as error:
        run(tmp_path, server.url, "--generate.concurrency", "1")
    assert len(error.value.problems) == 1
    before = stored(tmp_path / "out")
    assert len(before) == 5
    with running(FakeServer()) as other:
        check_whole(run(tmp_path, other.url))
        assert {body["seed"] for _, body in other.asked}.isdisjoint({row["seed"] for row in before})
        assert len(other.asked) == 7


def test_of_several_servers_one_may_be_gone(tmp_path: Path, server: FakeServer) -> None:
    gone = FakeServer()
    gone.http.server_close()
    with running(FakeServer()) as other:
        check_whole(run(tmp_path, f"{server.url}, {gone.url},{other.url}"))
        assert server.asked
        assert other.asked


def test_a_server_that_does_not_answer_in_time_is_given_up(tmp_path: Path, server: FakeServer) -> None:
    release = threading.Event()

    def hang(number: int, body: dict) -> str:
        release.wait(20)
        return "fine"

    server.trouble = hang
    with pytest.raises(UserError, match=r"no answer in time \(--generate.timeout_seconds\)"):
        run(tmp_path, server.url, "--generate.timeout_seconds", "0.1", "--generate.max_retries", "1")
    release.set()


def engine_of_one_try(server: FakeServer, timeout_seconds: float) -> OpenAIEngine:
    return OpenAIEngine([server.url], "m", Sampling(1.0, 1.0, 4, None), 1, timeout_seconds, 0)


def drip() -> Iterator[bytes]:
    for _ in range(60):
        yield b" "
        time.sleep(0.05)


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_that_comes_bit_by_bit_is_given_up(server: FakeServer, status: int) -> None:
    server.trouble = lambda number, body: (status, drip())
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer in time \(--generate.timeout_seconds\)"):
        list(engine_of_one_try(server, 0.2).answers(iter([Request(Prompt("a", "x"), 0, 7)])))
    assert time.monotonic() - start < 2, "of 3 s that the server would take"


@pytest.mark.parametrize(
    ("blocks", "headers", "words"),
    [
        (itertools.repeat(b" " * (1 << 16), 64), {}, "an answer that is none: it has more than 131,072 bytes"),
        (
            iter([gzip.compress(b" " * (1 << 20))]),
            {"Content-Encoding": "gzip"},
            r"is compressed \(gzip\), which",
        ),
    ],
    ids=["endless", "compressed"],
)
def test_an_answer_of_more_than_memory_is_given_up(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, blocks: Any, headers: dict, words: str
) -> None:
    monkeypatch.setattr(server_answer, "MAX_ANSWER_BYTES", 1 << 17)
    server.trouble = lambda number, body: (200, blocks, headers)
    with pytest.raises(UserError, match=words):
        list(engine_of_one_try(server, 30.0).answers(iter([Request(Prompt("a", "x"), 0, 7)])))
    assert server.headers[0]["Accept-Encoding"] == "identity"


REFUSALS = [
    (404, {"error": {"message": "The model does not exist"}}, "has no model 'm'; it has 'm': name it by"),
    (401, {"error": "no key"}, "set OPENAI_API_KEY in the environment"),
    (400, {"error": {"message": "top_p must be in (0, 1]"}}, "refuses the request (status 400): top_p must be"),
]


@pytest.mark.parametrize(("status", "body", "words"), [*REFUSALS, (500, {}, "No answer after 4 tries")])
def test_a_login_is_used_and_not_shown(tmp_path: Path, server: FakeServer, status: int, body: dict, words: str) -> None:
    server.trouble = lambda number, _: (status, body)
    with pytest.raises(UserError) as error:
        run(tmp_path, server.url.replace("//", "//me:secret@"))
    assert words in str(error.value)
    assert "secret" not in str(error.value)
    assert server.headers[0]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(("status", "body", "words"), REFUSALS)
def test_what_no_further_try_can_mend_ends_at_once(
    tmp_path: Path, server: FakeServer, status: int, body: dict, words: str
) -> None:
    server.trouble = lambda number, _: (status, body)
    with pytest.raises(UserError) as error:
        run(tmp_path, server.url, "--generate.concurrency", "1")
    (sentence,) = error.value.problems
    assert words in sentence
    assert len(server.asked) <= (2 if status != 400 else 12)  # of several prompts: one could be at fault


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", "/v1"),
        ("/", "/v1"),
        ("/behind/v1/", "/behind/v1"),
        ("/v1beta/openai", "/v1beta/openai"),
        ("/api/v4", "/api/v4"),
    ],
)
def test_an_address_with_a_version_is_asked_as_it_is(server: FakeServer, given: str, asked: str) -> None:
    engine = OpenAIEngine([server.url + given], "m", Sampling(1.0, 1.0, 4, None), 1, 5.0, 3)
    (found,) = engine.answers(iter([Request(Prompt("a", "x"), 0, 7)]))
    assert isinstance(found, Generation)
    assert server.asked[0][0] == f"{asked}/completions"


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://me:secret@elsewhere/v2/completions", r"https://[^s]*elsewhere/v2"),
        ("https://elsewhere/v2/chat/completions?key=secret", "https://elsewhere/v2"),
        ("/v2/completions", r"http://127.0.0.1:\d+/v2"),
    ],
)
def test_an_address_that_has_moved_is_told_as_it_is_given(server: FakeServer, location: str, told: str) -> None:
    server.trouble = lambda number, body: (308, {}, {"Location": location})
    with pytest.raises(UserError, match=rf"sends elsewhere \(status 308\), to {told}: give that by --gen") as error:
        list(engine_of(server, 1).answers(iter([Request(Prompt("a", "x"), 0, 7)])))
    assert "secret" not in str(error.value)
    assert len(server.asked) == 1


def test_a_prompt_that_the_server_finds_too_long_is_left_out(tmp_path: Path, server: FakeServer) -> None:
    too_long = (400, {"error": {"message": "This model's maximum context length is 128 tokens."}})
    server.trouble = lambda number, body: too_long if body["prompt"] == "question 2" else "fine"
    found = run(tmp_path, server.url, "--generate.concurrency", "1")
    assert len(found) == 10
    assert json.loads((tmp_path / "out/stats.json").read_text())["left_out"] == {"the prompt is too long": 1}
    assert sum(body["prompt"] == "question 2" for _, body in server.asked) == 1  # not for its second answer


def test_a_refusal_that_tells_it_by_its_type_alone_is_of_a_prompt_that_is_too_long(server: FakeServer) -> None:
    """llama.cpp's."""
    error = {"code": 400, "message": "try increasing it", "type": "exceed_context_size_error"}
    server.trouble = lambda number, body: (400, {"error": error})
    (found,) = engine_of(server, 1).answers(iter([Request(Prompt("a", "x"), 0, 7)]))
    assert found.reason == "the prompt is too long"


def test_a_prompt_that_alone_is_refused_is_left_out_with_the_servers_words(tmp_path: Path, server: FakeServer) -> None:
    def refused(number: int, body: dict[str, Any]) -> Any:
        return (400, {"error": {"message": "roles must alternate"}}) if body["prompt"] == "question 0" else "fine"

    server.trouble = refused
    found = run(tmp_path, server.url, "--generate.concurrency", "1")
    assert len(found) == 10
    assert json.loads((tmp_path / "out/stats.json").read_text())["left_out"] == {"the server refuses the prompt": 1}
    (left_out,) = StoredRows(tmp_path / "out", LEFT_OUT)
    assert left_out["reason"] == "the server refuses the prompt: roles must alternate"


def test_many_prompts_are_refused_before_the_first_answer_comes(tmp_path: Path, server: FakeServer) -> None:
    def refused(number: int, body: dict[str, Any]) -> Any:
        if body["prompt"] != "question 0":
            return 400, {"error": {"message": "roles must alternate"}}
        time.sleep(0.5)
        return "fine"

    server.trouble = refused
    rows = [{"prompt": f"question {number}"} for number in range(12)]
    assert len(run(tmp_path, server.url, rows=rows)) == 2
    assert json.loads((tmp_path / "out/stats.json").read_text())["left_out"] == {"the server refuses the prompt": 11}


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
def test_an_answer_of_nothing_is_an_answer(tmp_path: Path, server: FakeServer, reason: str) -> None:
    nothing = {"choices": [{"message": {"content": None}, "finish_reason": reason}]}
    server.trouble = lambda *_: (200, nothing)
    found = run(tmp_path, server.url, rows=[{"messages": [{"role": "user", "content": "why?"}]}])
    assert [(row["response"], row["finish_reason"]) for row in found] == [("", reason)] * 2


def test_answers_that_are_under_way_at_a_failure_are_waited_for(tmp_path: Path, server: FakeServer) -> None:
    has_failed = threading.Event()

    def fails(number: int, body: dict[str, Any]) -> Any:
        if body["prompt"] == "question 0":
            has_failed.set()
            return 401, {}
        has_failed.wait(20)
        time.sleep(0.3)
        return "fine"

    server.trouble = fails
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        run(tmp_path, server.url, "--generate.n", "1")
    assert {row["prompt"] for row in stored(tmp_path / "out")} == {f"question {number}" for number in range(1, 6)}


def test_a_worker_leaves_what_came_before_a_failure(tmp_path: Path, server: FakeServer) -> None:
    """And what is missing is another range."""
    flags = ("--generate.engine", "openai", "--generate.url", server.url, "--generate.concurrency", "1")
    config = generate_config(tmp_path, ROWS, *flags, model="m")
    asked = [Request(prompt, 0, number) for number, prompt in enumerate(Prompts(config.data))]
    (tmp_path / "out").mkdir()
    server.trouble = lambda number, body: (401, {}) if number == 4 else "fine"
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        _answer_ranges(config, tmp_path / "out", None)(asked)
    (first,) = shards(tmp_path / "out")
    assert len(first.read_text().splitlines()) == 3
    whole, *_ = _answer_ranges(config, tmp_path / "out", None)(asked)
    assert (whole != first, len(whole.read_text().splitlines())) == (True, 6)


@pytest.mark.parametrize("key", ["sk-secret\n", "\r\nsk-secret "])
def test_a_key_may_have_ends_of_lines_around_it(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    run(tmp_path, server.url)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize("key", ["sk-sec\nret", "sk-sécret"])
def test_a_key_that_cannot_be_sent_is_told_and_not_shown(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="holds a character that no key has") as error:
        run(tmp_path, server.url)
    assert "sk-" not in str(error.value)


def test_the_key_of_the_environment_is_sent_and_written_nowhere(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    run(tmp_path, server.url)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert not any("sk-secret" in path.read_text() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("status", [400, 402, 500, 200])
@pytest.mark.parametrize("login", ["", "me:secret@"])
def test_what_a_server_quotes_of_a_key_is_shown_nowhere(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch, status: int, login: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush")

    def quotes(number: int, body: dict[str, Any]) -> Any:
        sent = server.headers[-1]["Authorization"]
        is_fine = body["prompt"] == "question 0" and status == 400
        return "fine" if is_fine else (status, {"error": f"{sent}: {sent.partition(' ')[2]} is wrong, secret too"})

    server.trouble = quotes
    told = ""
    try:
        run(tmp_path, server.url.replace("//", f"//{login}"))
    except UserError as error:
        told = str(error)
    told += "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert f"{'Basic' if login else 'Bearer'} [hidden]: [hidden] is wrong" in told
    assert not any(secret in told for secret in ("sk-hush", "bWU6c2VjcmV0", *(["secret"] if login else [])))


def test_answers_that_come_beside_a_failure_are_kept(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is done when the engine looks: half of it answers, half refusals that end the run."""
    server.trouble = lambda number, body: (401, {}) if body["seed"] % 2 else "fine"

    def wait_for_all(futures: Any, *_: Any) -> Any:
        return wait(futures)

    monkeypatch.setattr(openai_engine, "wait", wait_for_all)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        run(tmp_path, server.url, "--generate.concurrency", "12")
    even = {body["seed"] for _, body in server.asked if body["seed"] % 2 == 0}
    assert {row["seed"] for row in stored(tmp_path / "out")} == even != set()


def test_an_engine_that_is_asked_again_tries_again(server: FakeServer) -> None:
    """As a Ray worker's is, range after range."""
    server.trouble = lambda number, body: (503, {"error": "busy"}) if number == 2 else "fine"
    engine = engine_of(server, 1)
    for name in ("a", "b"):
        (found,) = engine.answers(iter([Request(Prompt(name, "x"), 0, 7)]))
        assert found.response == "answer 7"


def test_a_prompt_without_room_for_its_answer_is_left_out_for_that(server: FakeServer) -> None:
    said = "'max_tokens' is too large: 8192. This model's maximum context length is 8192 tokens"
    server.trouble = lambda number, body: (400, {"error": {"message": said}})
    (found,) = engine_of(server, 1, 8192).answers(iter([Request(Prompt("a", "x"), 0, 7)]))
    assert found.reason == "the prompt leaves no room for --generate.max_new_tokens"
