"""A remote reward: POST {"query": […], "prompts": […], "labels": […]} → {"rewards": […]}, OpenRLHF's protocol."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf.config.disk import without_secrets
from openrlhf.errors import UserError, first_line_of
from openrlhf.rejection.records import Row, noted_model
from openrlhf.rejection.rewards.reward import (
    CONVERSATIONS,
    FINGERPRINT,
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
_MAY_PASS = (*_OF_THE_ADDRESS, 408, 425, 429)  # as every 5xx: a gateway in the midst of a change says 404
_MOST_PROBES = 3  # answers that a server is asked about to see whether it works, before it has judged one


def address_content(url: str) -> str:
    """What tells addresses apart where secrets may not stand: the address itself, or a hash where it has a query."""
    return url if without_secrets(url) == url else hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would ask the other address without the question."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _NoAnswer(CallFailed):
    """No try has got an answer that can be read: the fault is the server's, or that of what it is asked about."""


class ServerReward(Reward):
    """A server that is asked again after an error; one that is gone, or fails at whatever it is asked about, ends the
    stage, which goes on when it is back. Where it judges others, the answers that it fails at have no verdict.
    """

    def __init__(self, url: str, timeout_seconds: float, rows_a_call: int):
        self._url, self._opener = url, urllib.request.build_opener(_NoRedirects)
        self.name, self.content = without_secrets(url), address_content(url)
        self.rows_a_call = rows_a_call
        self._timeout_seconds = timeout_seconds
        self._judged: Row | None = None  # an answer that the server has judged
        self._output: Path | None = None
        self._model: str | None = None  # the fingerprint of who has judged the rows of the output
        self._turn = threading.Lock()

    def goes_on_in(self, output: Path) -> None:
        self._output, self._model = output, noted_model(output, self.name)

    def judge(self, rows: Sequence[Row]) -> list[RewardVerdict]:
        return judge_apart(self._call, rows)

    def _call(self, rows: Sequence[Row]) -> list[RewardVerdict]:
        try:
            answer = self._asked(_body(rows))
            self._check_model(answer)
            verdicts = verdicts_of(answer, len(rows))
        except _NoAnswer as error:
            self._judged = next(filter(self._works_for, self._probes(rows)), None)
            if self._judged is None:
                raise UserError(f"--score.reward {self.name} gives no rewards: {error}.", _KEPT) from error
            raise
        self._judged = rows[0]
        return verdicts

    def _check_model(self, answer: Any) -> None:
        """Raises UserError where another model answers than has judged the rows so far. Not every server says."""
        said = answer.get(FINGERPRINT) if isinstance(answer, dict) else None
        with self._turn:
            if self._model is None and self._output is not None and isinstance(said, str):
                self._model = noted_model(self._output, self.name, said)
        if self._model not in (None, said):
            raise UserError(
                f"--score.reward {self.name} answers by another model, or with other settings, than have judged the "
                f"rows in {self._output}: serve those again, or give another --score.output."
            )

    def _probes(self, rows: Sequence[Row]) -> list[Row]:
        """What a server that works answers: what it has judged already, else some of a call that has failed, singly.

        At last a question alone: an answer may be what the server fails at.
        """
        if self._judged is not None:
            return [self._judged]
        some = rows[:: -(-len(rows) // _MOST_PROBES)] if len(rows) > 1 else ()
        return [*some, {**rows[0], "response": ""}]

    def _works_for(self, row: Row) -> bool:
        """Whether the server gives an answer to one question that can be read; a refusal is one too."""
        try:
            self._post(_body([row]))
        except urllib.error.HTTPError as error:
            return not _may_pass(error.code)
        except (OSError, ValueError, RecursionError, http.client.HTTPException):
            return False
        return True

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
                if not _may_pass(error.code):
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
        raise _NoAnswer(reason)

    def _post(self, body: bytes) -> Any:
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        until = time.monotonic() + self._timeout_seconds
        with self._opener.open(request, timeout=self._timeout_seconds) as response:
            return json.loads(body_of(iter(lambda: response.read1(_BLOCK_BYTES), b""), until))


def _body(rows: Sequence[Row]) -> bytes:
    prompts = [text_of(row["prompt"]) for row in rows]
    content = {
        "query": [prompt + row["response"] for prompt, row in zip(prompts, rows, strict=True)],
        "prompts": prompts,
        "labels": [row.get("label") for row in rows],
    }
    conversations = [_conversation(row) for row in rows]
    if any(conversations):
        content[CONVERSATIONS] = conversations
    return json.dumps(content).encode()


def _conversation(row: Row) -> dict[str, Any] | None:
    """The row for a server with a template, which a text of the contents cannot stand for; None of a text."""
    if isinstance(row["prompt"], str):
        return None
    return {name: row[name] for name in ("prompt", "response", "tools") if row.get(name) is not None}


def _may_pass(status: int) -> bool:
    return status >= 500 or status in _MAY_PASS
