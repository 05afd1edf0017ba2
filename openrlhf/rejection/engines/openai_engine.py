"""Any OpenAI-compatible server (vLLM, SGLang, `transformers serve`, …), or several: one request for each answer.

A server gives the second answer of one request a seed of its own choice, and some ignore how many are asked for. The
key is read from OPENAI_API_KEY alone.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import httpx

from openrlhf.datasets.tokenization.chat_template import with_arguments_as_text
from openrlhf.errors import UserError, first_line_of
from openrlhf.exit_codes import SECONDS_BETWEEN_SIGNALS
from openrlhf.rejection.answer import BESIDE_THE_TEXT
from openrlhf.rejection.engines.engine import TOO_LONG, Engine, Generation, Refusal, Request, Sampling
from openrlhf.rejection.server_answer import AnswerTooLarge, body_of, has_moved, of_the_protocol

API_KEY = "OPENAI_API_KEY"
_PLAIN = "identity"  # HTTP's word for what is not compressed
_CONNECT_SECONDS = 10.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.25, 30.0
_OFTEN_OTHER_NAMES = {"eos": "stop", "eos_token": "stop", "max_tokens": "length"}
_GIVEN_UP = ("abort", "error", "cancelled")  # by a server that ends: what it has sent is a part
_MOST_TOKENS = 1 << 31  # more is a mistake of the server
_ENDED = ("stop", "length", "content_filter")  # of an answer that is whole, even where there is no text in it
_TOO_LONG_WORDS = (
    *("context length", "context_length", "maximum context", "context size", "exceed_context_size"),
    *("too long", "max_model_len", "longer than"),
)
_ROOM_WORDS = ("max_tokens", "max_completion_tokens")
NO_ROOM = "the prompt leaves no room for --generate.max_new_tokens"
REFUSED = "the server refuses the prompt"
_SHORTEST_SECRET = 4  # characters: a shorter one hides nothing, and stands in many words
_MOST_REFUSED_FIRST = 8  # prompts; where no other prompt has an answer, the fault is not theirs


class _TryAgain(Exception):
    """A failure that may pass. `wait_seconds`: what the server asks for."""

    def __init__(self, reason: str, wait_seconds: float = 0.0):
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _RequestRefused(Exception):
    """A request is refused in words: its prompt's fault if others are answered, else one of all requests."""

    def __init__(self, sentence: str, refusal: Refusal):
        super().__init__(sentence)
        self.refusal = refusal


class OpenAIEngine(Engine):
    """Args: model: as the servers call it; concurrency: requests that wait for an answer, over all servers."""

    def __init__(
        self,
        urls: list[str],
        model: str,
        sampling: Sampling,
        concurrency: int,
        timeout_seconds: float,
        max_retries: int,
    ):
        self._urls = [of_the_protocol(url) for url in urls]
        self._model, self._sampling = model, sampling
        self._concurrency, self._max_retries = concurrency, max_retries
        self._timeout_seconds = timeout_seconds
        key = _key()
        self._client = httpx.Client(
            headers={"Accept-Encoding": _PLAIN, **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, _CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )
        self._turn = itertools.count()
        self._is_closed = threading.Event()
        self._has_answered = False

    def answers(self, requests: Iterator[Request]) -> Iterator[Generation | Refusal]:
        self._is_closed.clear()  # a worker asks again and again
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="openai") as threads:
            waiting: set[Future[Generation | Refusal]] = set()
            refused: list[_RequestRefused] = []
            failures: list[BaseException] = []
            try:
                while True:
                    # Those that are asked may yet be answered, and then the refused ones are left out.
                    num_refused = len({one.refusal.request.prompt.prompt_id for one in refused})
                    is_held = failures or num_refused > _MOST_REFUSED_FIRST
                    room = 0 if is_held else self._concurrency - len(waiting)
                    for request in itertools.islice(requests, room):
                        waiting.add(threads.submit(self._ask, request))
                    if not waiting:
                        break
                    done, waiting = wait(waiting, SECONDS_BETWEEN_SIGNALS, FIRST_COMPLETED)
                    for future in done:  # what comes is kept, whatever else fails
                        if (error := future.exception()) is None:
                            yield future.result()
                        elif isinstance(error, _RequestRefused):
                            refused.append(error)
                        else:
                            failures.append(error)
                    yield from self._of_their_prompts(refused)
                    if failures:
                        self._is_closed.set()  # those that wait to try again give up; the others are waited for
                for error in (*failures, *refused):
                    raise UserError(str(error)) if isinstance(error, _RequestRefused) else error
            finally:
                self._is_closed.set()  # those that wait to try again give up
                for future in waiting:
                    future.cancel()

    def _of_their_prompts(self, refused: list[_RequestRefused]) -> Iterator[Refusal]:
        """The refusals, which are taken off the list, once another prompt has an answer."""
        while self._has_answered and refused:
            yield refused.pop().refusal

    def close(self) -> None:
        self._is_closed.set()
        self._client.close()

    def _ask(self, request: Request) -> Generation | Refusal:
        """Tries one server after another. Raises UserError where tries are used up, or where none can help."""
        first = next(self._turn)
        reasons: dict[str, str] = {}
        for number in range(self._max_retries + 1):
            url = self._urls[(first + number) % len(self._urls)]
            try:
                return self._ask_one(url, request)
            except _TryAgain as failure:
                reasons[url] = str(failure)
                longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**number)
                # Others wait too: at random, so that they do not all come back at once.
                if number < self._max_retries and self._is_closed.wait(
                    max(failure.wait_seconds, random.uniform(longest / 2, longest))
                ):
                    break
        told = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        raise UserError(
            f"No answer after {self._max_retries + 1} tries ({told}). All answers so far are kept: look after the "
            "server, and start the same command again."
        )

    def _ask_one(self, url: str, request: Request) -> Generation | Refusal:
        is_chat = not isinstance(request.prompt.content, str)
        try:
            response = self._answer_of(
                "POST", f"{url}/{'chat/completions' if is_chat else 'completions'}", self._payload(request, is_chat)
            )
        except (httpx.TimeoutException, TimeoutError):
            raise _TryAgain("no answer in time (--generate.timeout_seconds)") from None
        except httpx.InvalidURL as error:
            raise UserError(f"--generate.url {url} is no address: {error}.") from None
        except AnswerTooLarge as error:
            raise _TryAgain(f"an answer that is none: {error}") from None
        except httpx.HTTPError as error:
            raise _TryAgain(first_line_of(error)) from error
        if response.status_code >= 300:
            return self._refusal(url, request, response)
        answer = _answer_in(request, response, is_chat)
        self._has_answered = True
        return answer

    def _answer_of(self, method: str, address: str, content: Any = None) -> httpx.Response:
        """The whole answer. Raises TimeoutError, AnswerTooLarge, and what httpx raises."""
        until = time.monotonic() + self._timeout_seconds
        with self._client.stream(method, address, json=content) as response:
            if (encoding := response.headers.get("Content-Encoding", _PLAIN)) != _PLAIN:  # a few bytes may be endless
                raise httpx.DecodingError(f"an answer that is compressed ({encoding}), which was not asked for")
            body = body_of(response.iter_raw(), until)
        return httpx.Response(response.status_code, headers=response.headers, content=body, request=response.request)

    def _payload(self, request: Request, is_chat: bool) -> dict[str, Any]:
        sampling, prompt = self._sampling, request.prompt
        asked: dict[str, Any] = {"prompt": prompt.content}
        if not isinstance(prompt.content, str):
            asked = {"messages": [with_arguments_as_text(message) for message in prompt.content]}
        if is_chat and prompt.tools:
            asked["tools"] = prompt.tools
        return {
            **asked,
            "model": self._model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
            "n": 1,
            "stream": False,
        }

    def _refusal(self, url: str, request: Request, response: httpx.Response) -> Refusal:
        """Raises _TryAgain for what may pass, UserError for what no prompt can help, _RequestRefused for the rest."""
        status, (said, heard) = response.status_code, _said(response)
        if status < 400:
            raise has_moved(url, status, response.headers.get("Location"), "--generate.url")
        if status in (408, 409, 425, 429) or status >= 500:
            raise _TryAgain(f"status {status}, {said}", _retry_after(response))
        if status in (400, 413, 422) and any(words in heard.lower() for words in _TOO_LONG_WORDS):
            return Refusal(request, NO_ROOM if any(words in heard for words in _ROOM_WORDS) else TOO_LONG)
        if status in (401, 403):
            raise UserError(f"{url} wants a key, or another one (status {status}): set {API_KEY} in the environment.")
        if status == 404:
            raise UserError(
                f"{url} has no model {self._model!r}{self._models_of(url)}: name it by --generate.served_name."
            )
        sentence = f"{url} refuses the request (status {status}): {said}"
        if status in (400, 422):
            raise _RequestRefused(sentence, Refusal(request, f"{REFUSED}: {said}"))
        raise UserError(sentence)

    def _models_of(self, url: str) -> str:
        try:
            names = [model["id"] for model in self._answer_of("GET", f"{url}/models").json()["data"]]
        except (httpx.HTTPError, OSError, ValueError, RecursionError, KeyError, TypeError):
            return ""
        return f"; it has {', '.join(map(repr, names[:10])) or 'none'}"


def _answer_in(request: Request, response: httpx.Response, is_chat: bool) -> Generation:
    """Raises _TryAgain where the body is no answer."""
    try:
        body = response.json()
        choice = body["choices"][0]
        message = choice["message"] if is_chat else {"content": choice["text"]}
        columns = {name: message[name] for name in BESIDE_THE_TEXT if message.get(name)}
        calls = columns.get("tool_calls", [])
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise TypeError("its tool_calls are no list of calls")
        reason = choice.get("finish_reason")
        text: Any = message.get("content")
        text = "" if text is None and (columns or (is_chat and reason in _ENDED)) else text
        text.encode()  # half a surrogate pair could not be trained on
        num_tokens = (body.get("usage") or {}).get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _TryAgain(f"an answer that is none: {_hidden(response.text, response)[:100]!r}") from None
    if not isinstance(reason, str) or reason in _GIVEN_UP:
        raise _TryAgain(f"an answer without its end: {_hidden(response.text, response)[:100]!r}")
    num_tokens = num_tokens if isinstance(num_tokens, int) and 0 <= num_tokens < _MOST_TOKENS else None
    return Generation(request, text, _OFTEN_OTHER_NAMES.get(reason, reason), num_tokens, columns)


def _said(response: httpx.Response) -> tuple[str, str]:
    """The server's own words, to be told; and these in full with its names for the error, to know it by."""
    names = ""
    try:
        body = response.json()
        error = body.get("error", body)
        said = error if isinstance(error, str) else error.get("message") or error.get("detail") or error
        names = "" if isinstance(error, str) else f"{error.get('type')} {error.get('code')}"
    except (ValueError, AttributeError, RecursionError):
        said = response.text
    return " ".join(_hidden(str(said), response).split())[:300], f"{said} {names}"


def _hidden(text: str, response: httpx.Response) -> str:
    """A server may quote what it was sent: the key, or a login, also as its header has it."""
    sent = response.request.headers.get("Authorization", "").partition(" ")[2]
    for secret in (sent, response.request.url.password):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "[hidden]")
    return text


def _key() -> str:
    """Raises UserError where no header may hold it: the error that httpx would raise shows it."""
    key = os.environ.get(API_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{API_KEY} in the environment holds a character that no key has: set it again.")
    return key


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(_LONGEST_WAIT_SECONDS, float(response.headers.get("Retry-After", 0)))
    except ValueError:  # a date
        return 0.0
