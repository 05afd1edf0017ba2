"""An engine without a model: its answers are known beforehand, and it counts what it is asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf.config import GenerateConfig, parse_config
from openrlhf.rejection.engines.engine import TOO_LONG, Engine, Generation, Refusal, Request

LONG = "too long"  # a prompt that the engine refuses
KNOWN = "known"  # a label that two of three answers are


class StandIn(Engine):
    """Answers out of order, as real engines do. Args: seconds: that each answer takes."""

    def __init__(self, seconds: float = 0.0, num_at_once: int = 4):
        self.asked: list[tuple[str, int]] = []
        self._seconds, self._num_at_once = seconds, num_at_once

    def answers(self, requests: Iterator[Request]) -> Iterator[Generation | Refusal]:
        waiting: list[Request] = []
        for request in requests:
            waiting.append(request)
            if len(waiting) == self._num_at_once:
                yield self._result(waiting.pop(request.seed % len(waiting)))
        while waiting:
            yield self._result(waiting.pop())

    def _result(self, request: Request) -> Generation | Refusal:
        self.asked.append((request.prompt.prompt_id, request.sample_index))
        time.sleep(self._seconds)
        if request.prompt.content == LONG:
            return Refusal(request, TOO_LONG)
        knows = "label" in request.prompt.columns and request.prompt.columns["label"] == KNOWN and request.seed % 3
        return Generation(request, KNOWN if knows else f"answer {request.seed}", "stop", 3)


def generate_config(tmp_path: Path, rows: list[dict[str, Any]], *flags: str, model: str = "a-model") -> GenerateConfig:
    """The configuration of a run over these rows, which are written into a file, with answers in `out`."""
    data = tmp_path / "prompts.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not data.exists() or data.read_text() != text:
        data.write_text(text)
    given = [
        "--model.model_name_or_path",
        model,
        "--data.dataset",
        str(data),
        "--generate.output",
        str(tmp_path / "out"),
    ]
    return parse_config(GenerateConfig, [*given, *flags])


def stored(folder: Path) -> list[dict[str, Any]]:
    from openrlhf.rejection.records import StoredRows

    return list(StoredRows(folder))
