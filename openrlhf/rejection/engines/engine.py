"""The interface of all engines: requests in, answers out as they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from openrlhf.rejection.prompts import Prompt


@dataclass(frozen=True)
class Request:
    """One answer is asked for."""

    prompt: Prompt
    sample_index: int
    seed: int


@dataclass(frozen=True)
class Generation:
    """What came.

    Attributes:
        finish_reason: stop, or length where the answer was cut off.
        num_tokens: tokens that were generated, the end token included; None where a server does not say.
        columns: what the engine knows besides, such as tool calls.
    """

    request: Request
    response: str
    finish_reason: str
    num_tokens: int | None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """The prompt cannot be answered, whatever the seed: it is left out for this reason."""

    request: Request
    reason: str


TOO_LONG = "the prompt is too long"


class Engine(ABC):
    """A model that answers."""

    @abstractmethod
    def answers(self, requests: Iterator[Request]) -> Iterator[Generation | Refusal]:
        """An answer or a refusal for each request, in any order, each as soon as it is there.

        Requests are taken as there is room for them. Raises UserError where the engine cannot go on.
        """

    def close(self) -> None:  # noqa: B027  most engines hold nothing that outlives the process
        """Lets go of what the engine holds."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; fields as of `--generate`."""

    temperature: float
    top_p: float
    max_new_tokens: int
    max_prompt_len: int | None
