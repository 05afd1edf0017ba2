"""A remote reward: POST {"query": […], "prompts": […], "labels": […]} → {"rewards": […]}, OpenRLHF's protocol."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from openrlhf.config.disk import without_secrets
from openrlhf.errors import UserError, first_line_of
from openrlhf.rejection.records import Row
from openrlhf.rejection.rewards.reward import (
    CONVERSATIONS,
    CallFailed,
    Reward,
    RewardVerdict,
    judge_apart,
    text_of,
    verdicts_of,
)
from openrlhf.rejection.server_answer import body_of, has_moved

SECONDS_BEFORE_RETRIES = (0.5, 1.0, 2.0, 4.0, 8.0)
_BLOCK_BYTES = 1 << 16
_KEPT = "What is scored is kept: look after the server, and start the same command again."
_OF_THE_ADDRESS = (401, 403, 404, 405)  # whatever the answers are
_WORTH_A_RETRY = (*_OF_THE_ADDRESS, 408, 425, 429, 500, 502, 503, 504)  # a gateway in the midst of a change says 404


def address_content(url: str) -> str:
    """What tells addresses apart where secrets may not stand: the address itself, or a hash where it has a query."""
    return url if without_secrets(url) == url else hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would ask the other address without the question."""

    def redirect_request(self, *_: Any) -> None:
        return None


class ServerReward(Reward):
    """A server that is asked again after an error; one that is gone ends the stage, which goes on when it is back."""

    def __init__(self, url: str, timeout_seconds: float, rows_a_call: int):
        self._url, self._opener = url, urllib.request.build_opener(_NoRedirects)
        self.name, self.content = without_secrets(url), address_content(url)
        self.rows_a_call = rows_a_call
        self._timeout_seconds = timeout_seconds

    def judge(self, rows: Sequence[Row]) -> list[RewardVerdict]:
        return judge_apart(self._call, rows)

    def _call(self, rows: Sequence[Row]) -> list[RewardVerdict]:
        prompts = [text_of(row["prompt"]) for row in rows]
        content = {
            "query": [prompt + row["response"] for prompt, row in zip(prompts, rows, strict=True)],
            "prompts": prompts,
            "labels": [row.get("label") for row in rows],
        }
        conversations = [_conversation(row) for row in rows]
        if any(conversations):
            content[CONVERSATIONS] = conversations
        return verdicts_of(self._asked(json.dumps(content).encode()), len(rows))

    def _asked(self, body: bytes) -> Any:
        """The server's answer, after some tries. Raises CallFailed; UserError where there is no server, or another."""
        for seconds in (*SECONDS_BEFORE_RETRIES, None):
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {error.reason}"
                if error.code < 400:
                    raise has_moved(self.name, error.code, error.headers["Location"], "--score.reward") from None
                if error.code in _OF_THE_ADDRESS and seconds is None:
                    raise UserError(f"--score.reward {self.name} gives no rewards: {reason}.", _KEPT) from None
                if error.code not in _WORTH_A_RETRY:
                    raise CallFailed(reason) from error
            except (ValueError, RecursionError, http.client.HTTPException) as error:
                reason = f"the server's answer cannot be read: {first_line_of(error)}"
            except OSError as error:
                # urllib wraps what goes wrong before the question is sent; an answer that is late comes as it is
                if isinstance(error, urllib.error.URLError) and seconds is None:
                    raise UserError(
                        f"--score.reward {self.name} cannot be reached: {first_line_of(error)}.", _KEPT
                    ) from error
                reason = f"no verdict within {self._timeout_seconds:g} s"
            if seconds is not None:
                time.sleep(seconds)
        raise CallFailed(reason)

    def _post(self, body: bytes) -> Any:
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        until = time.monotonic() + self._timeout_seconds
        with self._opener.open(request, timeout=self._timeout_seconds) as response:
            return json.loads(body_of(iter(lambda: response.read1(_BLOCK_BYTES), b""), until))


def _conversation(row: Row) -> dict[str, Any] | None:
    """The row for a server with a template, which a text of the contents cannot stand for; None of a text."""
    if isinstance(row["prompt"], str):
        return None
    return {name: row[name] for name in ("prompt", "response", "tools") if row.get(name) is not None}
