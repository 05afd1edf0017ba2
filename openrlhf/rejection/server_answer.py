"""What all who ask servers take of an answer: its body, within a time and a size; and where it sends elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from openrlhf.config.disk import without_secrets
from openrlhf.errors import UserError

MAX_ANSWER_BYTES = 1 << 26


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


def has_moved(server: str, status: int, location: str | None, flag: str) -> UserError:
    """Args: server: its address, without a query; location: as it stands in the answer."""
    place = re.split(r"[?#]", without_secrets(location or "no address"))[0]
    return UserError(f"{server} sends elsewhere (status {status}), to {place}: give that by {flag}.")
