"""Rewards over HTTP: those that the scorer gives offline, whoever asks at the same time; errors say what to mend."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from openrlhf.rejection.reward_scorer import RewardScorer
from openrlhf.rejection.rewards.model_reward import ModelReward
from openrlhf.rejection.rewards.reward import RewardVerdict
from openrlhf.rejection.rewards.server_reward import ServerReward
from tests.helpers.tokenizers import CHATML, CORPUS, tiny_tokenizer
from tests.objectives.reward_cases import tiny_classifier

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from openrlhf.config import ScoreSettings, ServeConfig, parse_config  # noqa: E402
from openrlhf.errors import UserError  # noqa: E402
from openrlhf.models import RewardModel  # noqa: E402
from openrlhf.rejection.reward_queue import QueueFull, RewardQueue  # noqa: E402
from openrlhf.rejection.reward_server import _fingerprint_of, _scorer_of, make_app  # noqa: E402

SECONDS_TO_ANSWER = 60.0


def by_length(items) -> list[RewardVerdict]:
    """A stand-in for the scorer."""
    return [RewardVerdict(None, "it is too long") if len(one) > 20 else RewardVerdict(float(len(one))) for one in items]


def asked(app, *requests: dict) -> list[httpx.Response]:
    """The answers to requests that are sent at the same time."""

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rewards") as client:
            sent = (client.post("/get_reward", **request) for request in requests)
            return await asyncio.wait_for(asyncio.gather(*sent), SECONDS_TO_ANSWER)

    return asyncio.run(ask())


def health(app) -> dict:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rewards") as client:
            return await client.get("/health")

    return asyncio.run(ask()).json()


def until_waiting(app, count: int) -> None:
    for _ in range(3000):
        if health(app)["waiting"] == count:
            return
        time.sleep(0.01)


def test_openrlhfs_protocol():
    app = make_app(by_length, 10, 1000, "f1")
    (answer,) = asked(app, dict(json={"query": ["a", "bcd"], "prompts": ["a", "b"], "labels": ["", ""]}))
    assert answer.json() == {"rewards": [1.0, 3.0], "scores": [1.0, 3.0], "extra_logs": {}, "fingerprint": "f1"}
    (answer,) = asked(app, dict(json={"query": []}))
    assert answer.json()["rewards"] == []


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        (dict(content=b"{"), 400, "the request is no JSON"),
        (dict(json=["a"]), 422, 'must be an object whose "query" is a list of texts'),
        (dict(json={"prompts": ["a"]}), 422, 'must be an object whose "query" is a list of texts'),
        (dict(json={"query": "a"}), 422, "query is a text: it must be a list of them"),
        (dict(json={"query": ["a", 3]}), 422, "query[1] is neither a text nor a list of messages"),
        (dict(json={"query": ["a"], "labels": ["x", "y"]}), 422, "labels must be a list as long as query"),
        (dict(json={"query": ["a", "b" * 21, "c" * 30]}), 422, "query[1]: it is too long (and 1 more)"),
        (dict(json={"query": ["a"] * 11}), 413, "11 texts are more than the 10 that may wait"),
        (dict(json={"query": ["a" * 1000]}), 413, "the request has more than 1,000 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_the_client_has_to_mend_is_told(request_, status, told):
    (answer,) = asked(make_app(by_length, max_waiting=10, max_body_bytes=1000), request_)
    assert answer.status_code == status
    assert told in answer.json()["detail"]


def test_a_body_that_does_not_announce_its_size_is_bounded_too():
    async def parts():
        for _ in range(30):
            yield b"[" * 100

    (answer,) = asked(make_app(by_length, max_waiting=10, max_body_bytes=1000), dict(content=parts()))
    assert answer.status_code == 413


def test_a_failure_is_told_and_the_next_request_answered():
    calls = []

    def fails_first(items):
        calls.append(items)
        if len(calls) == 1:
            raise RuntimeError("no memory is left")
        return by_length(items)

    app = make_app(fails_first, max_waiting=10, max_body_bytes=1000)
    (failed,) = asked(app, dict(json={"query": ["a"]}))
    assert (failed.status_code, failed.json()["detail"]) == (
        500,
        "the rewards could not be computed: no memory is left",
    )
    (answer,) = asked(app, dict(json={"query": ["a"]}))
    assert answer.json()["rewards"] == [1.0]


def test_a_full_queue_is_told_and_what_waits_is_computed_together():
    begun, may_go_on, calls = threading.Event(), threading.Event(), []

    def slow(items):
        calls.append(list(items))
        begun.set()
        assert may_go_on.wait(30)
        return by_length(items)

    app = make_app(slow, max_waiting=4, max_body_bytes=1000)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(asked, app, dict(json={"query": ["a"]}))
        assert begun.wait(30)
        waiting = pool.submit(asked, app, dict(json={"query": ["bb", "cc"]}), dict(json={"query": ["ddd"]}))
        until_waiting(app, 3)
        (refused,) = asked(app, dict(json={"query": ["e", "e"]}))
        may_go_on.set()
        assert [answer.json()["rewards"] for answer in [*first.result(), *waiting.result()]] == [
            [1.0],
            [2.0, 2.0],
            [3.0],
        ]
    assert refused.json()["detail"] == "3 texts wait, of at most 4: ask again later"
    assert refused.headers["retry-after"] == "1"
    assert calls == [["a"], ["bb", "cc", "ddd"]]


def test_a_request_that_fails_spoils_no_other():
    begun, may_go_on, calls = threading.Event(), threading.Event(), []

    def refuses_some(items):
        calls.append(list(items))
        begun.set()
        assert may_go_on.wait(30)
        if "bad" in items:
            raise UserError("the template takes no such text")
        return by_length(items)

    app = make_app(refuses_some, max_waiting=9, max_body_bytes=1000)
    with ThreadPoolExecutor() as pool:
        pool.submit(asked, app, dict(json={"query": ["a"]}))
        assert begun.wait(30)
        waiting = pool.submit(asked, app, dict(json={"query": ["bad"]}), dict(json={"query": ["bb", "c"]}))
        until_waiting(app, 3)
        may_go_on.set()
        refused, answered = waiting.result()
    assert answered.json()["rewards"] == [2.0, 1.0]
    assert (refused.status_code, "the template takes no such text" in refused.text) == (422, True)
    assert sorted(calls[1]) == ["bad", "bb", "c"], "they were computed together first"


def test_nothing_is_computed_for_a_client_that_has_gone():
    begun, may_go_on, calls = threading.Event(), threading.Event(), []

    def slow(items):
        calls.append(list(items))
        begun.set()
        assert may_go_on.wait(30)
        return by_length(items)

    app = make_app(slow, max_waiting=9, max_body_bytes=1000)
    told = iter([{"type": "http.request", "body": b'{"query": ["gone"]}'}, {"type": "http.disconnect"}])
    scope = {"type": "http", "method": "POST", "path": "/get_reward", "query_string": b"", "headers": []}

    async def receive():
        return next(told)

    async def send(message):
        pass

    with ThreadPoolExecutor() as pool:
        first = pool.submit(asked, app, dict(json={"query": ["a"]}))
        assert begun.wait(30)
        asyncio.run(asyncio.wait_for(app(scope, receive, send), SECONDS_TO_ANSWER))
        may_go_on.set()
        assert first.result()[0].json()["rewards"] == [1.0]
    assert asked(app, dict(json={"query": ["bb"]}))[0].json()["rewards"] == [2.0]
    assert calls == [["a"], ["bb"]]


def test_requests_that_wait_are_taken_together_up_to_a_bound():
    begun, may_go_on, calls = threading.Event(), threading.Event(), []

    def slow(items):
        calls.append(list(items))
        begun.set()
        assert may_go_on.wait(30)
        return items

    waiting = RewardQueue(slow, max_waiting=9, most_at_once=4)
    futures = [waiting.ask("a")]
    assert begun.wait(30)
    futures += [waiting.ask(items) for items in ("bb", "cc", "ddddd")]
    with pytest.raises(QueueFull):
        waiting.ask("e")
    may_go_on.set()
    assert ["".join(future.result(30)) for future in futures] == ["a", "bb", "cc", "ddddd"]
    assert ["".join(call) for call in calls] == ["a", "bbcc", "ddddd"]
    assert waiting.num_waiting == 0


# --- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward_model")
    tiny_classifier("qwen3").save_pretrained(path)
    tiny_tokenizer(CHATML).save_pretrained(path)
    return str(path)


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "openrlhf.cli.serve_rm", *flags]


def takes_no_packs(model: RewardModel, is_packed: bool, *others: object) -> None:
    if is_packed:
        raise UserError("no packs")


@pytest.mark.parametrize("is_packed", [True, False])
def test_no_batch_has_more_tokens_than_asked_for(folder, monkeypatch, is_packed):
    """Padding counts."""
    if not is_packed:
        monkeypatch.setattr(RewardModel, "check_layout", takes_no_packs)
    flags = ("--reward.model_name_or_path", folder, "--reward.max_tokens_per_batch", "60")
    scorer = _scorer_of(parse_config(ServeConfig, flags))
    sizes, score = [], scorer._model.score_sequences

    def looked_at(**inputs):
        sizes.append((inputs["input_ids"].numel(), len(inputs["last_index"])))
        assert (inputs["cu_seqlens"] is not None) == is_packed
        return score(**inputs)

    scorer._model.score_sequences = looked_at
    texts = [text[:length] for text in CORPUS for length in (3, 20, 45, 200)]
    assert None not in scorer.scores(texts)
    assert sum(num_texts for _, num_texts in sizes) == len(texts)
    assert max(num_tokens for num_tokens, _ in sizes) <= 60
    assert len(sizes) < len(texts) / 3, "short texts are computed together"


def test_rewards_over_http_are_the_offline_ones_and_a_signal_ends_the_server(folder):
    flags = ("--reward.model_name_or_path", folder, "--reward.max_tokens_per_batch", "200")
    with subprocess.Popen(
        command(*flags, "--port", "0", "--max_waiting", "60"), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            line = next(line for line in server.stdout if "serving" in line)
            address = re.search(r"http://\S+", line)[0]
            assert httpx.get(f"{address}/health", timeout=60).json() == {
                "status": "ok",
                "waiting": 0,
                "fingerprint": _fingerprint_of(parse_config(ServeConfig, flags).reward),
            }
            expected = RewardScorer(folder).scores(CORPUS)

            def ask(number: int) -> list[float]:
                texts = CORPUS[number % 3 :]
                return httpx.post(f"{address}/get_reward", json={"query": texts}, timeout=60).json()["rewards"]

            with ThreadPoolExecutor(8) as pool:
                for number, rewards in enumerate(pool.map(ask, range(24))):
                    assert rewards == pytest.approx(expected[number % 3 :], abs=1e-6)
            judged = ServerReward(f"{address}/get_reward", 60, 64).judge(ANSWERS)
            assert [one.value for one in judged] == pytest.approx(_by_folder(folder), abs=1e-6)
            refused = httpx.post(f"{address}/get_reward", json={"query": ["a"] * 61}, timeout=60)
            assert (refused.status_code, "more than the 60 that may wait" in refused.text) == (413, True)
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
            assert "ended: all requests are answered." in server.stdout.read()
        finally:
            server.kill()


ANSWERS = [
    {"prompt": [{"role": "system", "content": "Short."}, {"role": "user", "content": "Two and two?"}], "response": "4"},
    {"prompt": "Two and two? ", "response": "four"},
]


def test_a_fingerprint_is_of_weights_and_settings(folder):
    served = parse_config(ServeConfig, ("--reward.model_name_or_path", folder)).reward
    changes = ({"param_dtype": "bf16"}, {"max_len": 8}, {"normalize_enable": True}, {"model_name_or_path": "another"})
    assert len({_fingerprint_of(dataclasses.replace(served, **change)) for change in ({}, *changes)}) == 5
    assert _fingerprint_of(dataclasses.replace(served, max_tokens_per_batch=60)) == _fingerprint_of(served)


def _by_folder(folder: str) -> list[float | None]:
    """What a stage that reads the folder itself gives."""
    reward = ModelReward(folder, ScoreSettings())
    reward.start()
    return [one.value for one in reward.judge(ANSWERS)]


@pytest.mark.parametrize("row", [3, {"prompt": "a", "response": "b"}, {"prompt": [], "response": ["b"]}])
def test_what_is_no_conversation_is_told(row):
    app = make_app(by_length, max_waiting=10, max_body_bytes=1000)
    (answer,) = asked(app, dict(json={"query": ["a"], "conversations": [row]}))
    assert answer.status_code == 422
    assert "conversations[0] has no messages as prompt, or no text as response" in answer.text


def test_a_taken_port_is_told_before_a_model_is_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = ("--reward.model_name_or_path", str(tmp_path), "--port", str(taken.getsockname()[1]))
        ended = subprocess.run(command(*flags), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "cannot be listened at: Address already in use. Give another port" in ended.stderr
