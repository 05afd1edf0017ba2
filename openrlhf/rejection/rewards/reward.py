"""A reward, its verdicts, and calls that fail: a failure is no verdict, never a 0."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openrlhf.datasets.formats.chat import content_text
from openrlhf.datasets.samples import BadRow
from openrlhf.rejection.records import Row

CONVERSATIONS = "conversations"  # beside the queries to a server, which one of ours reads in their place
FINGERPRINT = "fingerprint"  # of the model and its settings, in each answer of a server of ours
NO_VERDICT = "no verdict"  # a function may give None: the answer is not its matter
_LARGEST = 1e38  # sums, means and margins of such rewards are finite, in float32 too
BEYOND = f"a number beyond {_LARGEST:g}"

Messages = list[dict[str, Any]]


class RewardVerdict(NamedTuple):
    """A finite number; or None with the reason why there is none."""

    value: float | None
    reason: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether there should have been a number."""
        return self.value is None and self.reason != NO_VERDICT


class Answered(NamedTuple):
    """An answer to a prompt, each text or messages; for a reward model a plain tuple of the two does as well."""

    prompt: str | Messages
    answer: str | Messages
    tools: Any = None  # of the prompt, as of a row's column


def is_reward(value: float) -> bool:
    return abs(float(value)) <= _LARGEST  # nan is not


class NoReward(Exception):
    """There is no such function; the text says why, and what to do."""


class CallFailed(Exception):
    """A call has given no verdicts; the text says why."""


class Reward:
    """Judges answers, once it is started. Threads may call `judge` at the same time.

    Attributes:
        name: its key in a row's `rewards`.
        rows_a_call: answers that a call is given.
        content: hash of the function, model or words behind it; other content makes other scores.
        needs_label: the row's label is compared with.
    """

    name: str
    rows_a_call: int = 1
    content: str = ""
    needs_label: bool = False

    def start(self) -> None:
        """Gets what takes time: weights, a process. Raises UserError where it cannot be had."""

    def goes_on_in(self, output: Path) -> None:
        """Tells it the folder of the rows that it has judged, and is to judge."""

    def judge(self, rows: Sequence[Row]) -> list[RewardVerdict]:
        """A verdict for each answer. Raises UserError where nothing more can be judged."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what it has started."""


def judge_apart(call: Callable[[Sequence[Row]], list[RewardVerdict]], rows: Sequence[Row]) -> list[RewardVerdict]:
    """The verdicts of a call; where it fails, each answer is judged by itself, so that one spoils no other."""
    try:
        return call(rows)
    except CallFailed as error:
        if len(rows) == 1:
            return [RewardVerdict(None, str(error))]
    return [judge_apart(call, [row])[0] for row in rows]


def verdicts_of(result: Any, num_answers: int) -> list[RewardVerdict]:
    """What a reward has returned, a list, a tensor or a dict with `rewards`, as verdicts.

    Raises CallFailed where it is something else, or not one for each answer.
    """
    if isinstance(result, dict):
        result = next((result[name] for name in ("rewards", "reward", "scores") if name in result), None)
    result = result.tolist() if hasattr(result, "tolist") else result
    if isinstance(result, int | float):
        result = [result]
    if not isinstance(result, list | tuple):
        raise CallFailed(f"returned {type(result).__name__} where a list of numbers belongs")
    if len(result) != num_answers:
        raise CallFailed(f"returned {len(result)} numbers for {num_answers} answers")
    return [_verdict(value) for value in result]


def _verdict(value: Any) -> RewardVerdict:
    if isinstance(value, list | tuple) and len(value) == 1:  # a column of a tensor
        value = value[0]
    value = value.item() if hasattr(value, "item") else value
    if value is None:
        return RewardVerdict(None, NO_VERDICT)
    if not isinstance(value, int | float):
        return RewardVerdict(None, f"returned {type(value).__name__} where a number belongs")
    try:
        number = float(value)
    except OverflowError:
        return RewardVerdict(None, "returned a number that no float holds")
    if is_reward(number):
        return RewardVerdict(number)
    return RewardVerdict(None, f"returned {BEYOND if math.isfinite(number) else value}")


def awaited(result: Awaitable[Any]) -> Any:
    """What an asynchronous function gives. All calls of a process have one loop: a client or a lock is bound to it."""
    return _loop().run_until_complete(result)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def text_of(prompt: Any) -> str:
    """A prompt as one text: messages stand in lines of their own, by their content alone.

    Raises CallFailed where that is more than text.
    """
    if isinstance(prompt, str):
        return prompt
    try:
        contents = [
            content_text(message.get("content", message.get("value")), f"message {number} of the prompt")
            for number, message in enumerate(prompt, start=1)
        ]
    except (BadRow, AttributeError) as error:
        raise CallFailed(str(error)) from error
    return "".join(f"{content}\n" for content in contents)
