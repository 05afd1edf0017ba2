"""A reward model behind HTTP, by OpenRLHF's protocol: POST /get_reward {"query": [texts]} → {"rewards": [numbers]}."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from openrlhf.config import ServeConfig
from openrlhf.config.kinds import size_bytes
from openrlhf.config.serve_settings import ServedModelConfig
from openrlhf.errors import UserError, first_line_of, how_to_install
from openrlhf.rejection.model_fingerprint import model_fingerprint
from openrlhf.rejection.reward_queue import QueueFull, RewardQueue
from openrlhf.rejection.rewards.reward import CONVERSATIONS, FINGERPRINT, Answered

_SECONDS_TO_SEND = 60.0  # a whole body
_SECONDS_TO_FINISH = 30  # what is being computed when the server is told to end


def serve(config: ServeConfig) -> None:
    """Answers until the process is told to end (SIGTERM, SIGINT); requests that are there are answered before, by their
    rewards where they are computed in time.

    Raises UserError where the address is taken, a package is missing, or there is no reward model.
    """
    try:
        import fastapi  # noqa: F401  said before the model is loaded
        import uvicorn
    except ImportError:
        raise UserError(f"serve_rm needs packages: {how_to_install('serve')}") from None
    listening = _listen(config.host, config.port)
    fingerprint = _fingerprint_of(config.reward)
    app = make_app(_scorer_of(config).judged, config.max_waiting, size_bytes(config.max_body), fingerprint)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_SECONDS_TO_FINISH, lifespan="off"
    )
    server = uvicorn.Server(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)  # before uvicorn hears them, and when it raises them again at its end
    host, port = listening.getsockname()[:2]
    print(
        f"serving {config.reward.model_name_or_path} at http://{host}:{port} (POST /get_reward, GET /health)",
        flush=True,
    )
    server.run(sockets=[listening])
    dropped = app.state.num_dropped
    told = f"{dropped:,} requests were not computed in time, and are answered so (503)"
    print(f"ended: {told if dropped else 'all requests are answered'}.", flush=True)


def make_app(judge: Any, max_waiting: int, max_body_bytes: int, fingerprint: str | None = None) -> Any:
    """The application of FastAPI.

    Args:
        judge: `RewardScorer.judged`, or what gives such results for items.
        fingerprint: of what the rewards depend on; it stands in each answer.
    """
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import JSONResponse

    queue = RewardQueue(judge, max_waiting)
    app = FastAPI(title="Rewards", docs_url=None, redoc_url=None)
    app.state.num_dropped = 0
    judged_by = {FINGERPRINT: fingerprint} if fingerprint is not None else {}

    async def get_reward(request: Any) -> JSONResponse:
        try:
            items = _items(await asyncio.wait_for(_body(request, max_body_bytes), _SECONDS_TO_SEND))
            if len(items) > max_waiting:
                raise _Refused(
                    413, f"{len(items):,} texts are more than the {max_waiting:,} that may wait: send fewer at once"
                )
            judged = await _unless_gone(request, queue.ask(items))
            rewards = _rewards(judged)
        except _Refused as refused:
            raise HTTPException(refused.status, refused.reason) from None
        except (TimeoutError, asyncio.TimeoutError):
            raise HTTPException(408, f"the request was not there after {_SECONDS_TO_SEND:g} seconds") from None
        except QueueFull:
            told = f"{queue.num_waiting:,} texts wait, of at most {max_waiting:,}: ask again later"
            raise HTTPException(503, told, {"Retry-After": "1"}) from None
        except UserError as error:  # of these texts alone: see RewardQueue
            raise HTTPException(422, f"the rewards could not be computed: {error}") from None
        except asyncio.CancelledError:  # the time to finish is over
            app.state.num_dropped += 1
            raise HTTPException(503, "the server ends, and has not computed these: ask again later") from None
        except Exception as error:
            raise HTTPException(500, f"the rewards could not be computed: {first_line_of(error)}") from error
        return JSONResponse({"rewards": rewards, "scores": rewards, "extra_logs": {}, **judged_by})

    async def health(request: Any) -> JSONResponse:
        return JSONResponse({"status": "ok", "waiting": queue.num_waiting, **judged_by})

    app.add_route("/get_reward", get_reward, methods=["POST"])
    app.add_route("/health", health, methods=["GET"])
    return app


class _Refused(Exception):
    """What the client has to mend."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


async def _body(request: Any, max_bytes: int) -> bytes:
    told = f"the request has more than {max_bytes:,} bytes: send fewer texts at once"
    if (announced := request.headers.get("content-length", "")).isdigit() and int(announced) > max_bytes:
        raise _Refused(413, told)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise _Refused(413, told)
    return bytes(body)


async def _unless_gone(request: Any, future: Future[list]) -> list:
    """The result. Nothing is computed for a client that goes before its turn."""
    answer, gone = asyncio.wrap_future(future), asyncio.ensure_future(request.receive())  # the body was read
    await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not answer.done():
        answer.cancel()
        raise _Refused(499, "the client has gone")
    gone.cancel()
    return answer.result()


def _items(body: bytes) -> list[Any]:
    """The texts, or conversations, that a request asks about."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, f"the request is no JSON: {first_line_of(error)}") from None
    query = content.get("query") if isinstance(content, dict) else None
    if isinstance(query, str):
        raise _Refused(422, "query is a text: it must be a list of them")
    if not isinstance(query, list):
        raise _Refused(422, 'the request must be an object whose "query" is a list of texts')
    for number, item in enumerate(query):
        if not (isinstance(item, str) or (isinstance(item, list) and item)):
            raise _Refused(422, f"query[{number}] is neither a text nor a list of messages")
    for name in ("prompts", "labels", CONVERSATIONS):
        beside = content.get(name)
        if beside is not None and (not isinstance(beside, list) or len(beside) not in (0, len(query))):
            raise _Refused(422, f"{name} must be a list as long as query, or be left out")
    for number, row in enumerate(content.get(CONVERSATIONS) or ()):
        query[number] = _answered(row, number) or query[number]
    return query


def _answered(row: Any, number: int) -> Answered | None:
    """What a client of ours sends where a text would lack the template: `ServerReward`."""
    if row is None:
        return None
    if not (isinstance(row, dict) and isinstance(row.get("prompt"), list) and isinstance(row.get("response"), str)):
        raise _Refused(422, f"{CONVERSATIONS}[{number}] has no messages as prompt, or no text as response")
    return Answered(row["prompt"], row["response"], row.get("tools"))


def _rewards(judged: Sequence[Any]) -> list[float]:
    """Of each item. A text without a reward spoils the request: a client would take any number for its reward."""
    without = [f"query[{number}]: {one.reason}" for number, one in enumerate(judged) if one.value is None]
    if without:
        more = f" (and {len(without) - 1:,} more)" if len(without) > 1 else ""
        raise _Refused(422, without[0] + more)
    return [one.value for one in judged]


def _listen(host: str, port: int) -> socket.socket:
    """Before the model is loaded, which takes time."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # behind it, the address once more
        raise UserError(
            f"--host {host} --port {port} cannot be listened at: {reason}. Give another port (0: any "
            "that is free), or an address of this machine."
        ) from None


def _fingerprint_of(reward: ServedModelConfig) -> str:
    """Of weights, and of the settings that a reward depends on."""
    model = model_fingerprint(reward.model_name_or_path)
    told = (model, reward.param_dtype, reward.max_len, reward.value_head_prefix, reward.normalize_enable)
    return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()


def _scorer_of(config: ServeConfig) -> Any:
    from openrlhf.rejection.reward_scorer import RewardScorer

    reward = config.reward
    return RewardScorer(
        reward.model_name_or_path,
        param_dtype=reward.param_dtype,
        max_tokens=reward.max_tokens_per_batch,
        max_len=reward.max_len,
        attn_implementation=reward.attn_implementation,
        head_prefix=reward.value_head_prefix,
        normalizes=reward.normalize_enable,
        trust_remote_code=reward.trust_remote_code,
    )
