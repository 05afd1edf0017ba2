"""What all who ask servers take of an answer: its body, within a time and a size; and where it sends elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from urllib.parse import urljoin

from openrlhf.config.disk import without_secrets
from openrlhf.errors import UserError

MAX_ANSWER_BYTES = 1 << 26
_VERSION = re.compile(r"/v\d\w*(?:/|$)")  # /v1, and /v1beta/openai


class AnswerTooLarge(ValueError):
    """A body has more bytes than any answer."""


def body_of(blocks: Iterable[bytes], until: float) -> bytes:
    """The whole body. Libraries bound the wait for each block, and a server may send one after another for ever.

    Args: until: when it must have ended, by `time.monotonic`.

    Raises TimeoutError, AnswerTooLarge.
    """
    body = bytearray()
    for block in blocks:
        body += block
        if len(body) > MAX_ANSWER_BYTES:
            raise AnswerTooLarge(f"it has more than {MAX_ANSWER_BYTES:,} bytes")
        if time.monotonic() > until:
            raise TimeoutError
    return bytes(body)


def of_the_protocol(url: str) -> str:
    """The address below which an OpenAI server has `models`: as given where it has a version, else with `/v1`."""
    url = url.rstrip("/")
    return url if _VERSION.search(url) else f"{url}/v1"


def health_of(url: str) -> str:
    """Where such a server tells that it is well, above the version."""
    return _VERSION.split(of_the_protocol(url))[0] + "/health"


def has_moved(server: str, status: int, location: str | None, flag: str) -> UserError:
    """Args: server: its address, without a query; location: as it stands in the answer, which may be a path alone."""
    place = without_secrets(urljoin(server, location)) if location else "no address"
    place = re.split(r"[?#]|(?:/chat)?/completions$", place)[0]  # below the address of an OpenAI server
    return UserError(f"{server} sends elsewhere (status {status}), to {place}: give that by {flag}.")
