"""An engine is asked: answers are kept as rows as they come, what it refuses is left out once, progress is told."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from openrlhf.rejection.engines.engine import Engine, Generation, Refusal, Request
from openrlhf.rejection.prompts import Prompt
from openrlhf.rejection.records import Row

EMPTY = "the prompt is empty"
_SECONDS_BETWEEN_LINES = 10.0  # of progress, where nobody watches a terminal


def ask(
    engine: Engine,
    requests: Iterable[Request],
    keep: Callable[[Row], None],
    keep_left_out: Callable[[Row], None],
    weights: str | None,
    progress: Progress | None = None,
) -> None:
    """Keeps answers and refusals as they come."""
    refused: dict[str, str] = {}

    def skip(prompt: Prompt, reason: str) -> None:
        if prompt.prompt_id not in refused:
            refused[prompt.prompt_id] = reason
            keep_left_out({"prompt_id": prompt.prompt_id, "reason": reason})
        if progress is not None:
            progress.add(0)

    def asked() -> Iterator[Request]:
        for request in requests:
            if request.prompt.is_empty or request.prompt.prompt_id in refused:
                skip(request.prompt, EMPTY)
            else:
                yield request

    for result in engine.answers(asked()):
        if isinstance(result, Refusal):
            skip(result.request.prompt, result.reason)
        else:
            keep(_row_of(result, weights))
            if progress is not None:
                progress.add(result.num_tokens or 0)


def _row_of(answer: Generation, weights: str | None) -> dict[str, Any]:
    request = answer.request
    prompt = request.prompt
    return {
        "prompt_id": prompt.prompt_id,
        "sample_index": request.sample_index,
        "prompt": prompt.content,
        "response": answer.response,
        "finish_reason": answer.finish_reason,
        "seed": request.seed,
        "num_tokens": answer.num_tokens,
        "model": weights,
        **prompt.columns,
        **({"tools": prompt.tools} if prompt.tools else {}),
        **answer.columns,
    }


class Progress:
    """A bar with the time left and the tokens a second, by the first rank; where there is no terminal, lines."""

    def __init__(self, num_missing: int):
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=num_missing,
            unit="answer",
            desc="generating",
            disable=os.environ.get("RANK", "0") != "0",
            mininterval=0.1 if is_terminal else _SECONDS_BETWEEN_LINES,
        )
        self._num_tokens, self._start = 0, time.monotonic()

    def add(self, num_tokens: int, num_answers: int = 1) -> None:
        self._num_tokens += num_tokens
        seconds = time.monotonic() - self._start
        self._bar.set_postfix_str(f"{self._num_tokens / max(seconds, 1e-3):,.0f} tokens/s", refresh=False)
        self._bar.update(num_answers)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
