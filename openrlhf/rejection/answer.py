"""A row's answer: its text, and what a server has sent beside it."""

from __future__ import annotations

from typing import Any

from openrlhf.rejection.records import Row

BESIDE_THE_TEXT = ("tool_calls", "reasoning_content", "reasoning")


def answer_of(row: Row) -> str | list[dict[str, Any]]:
    """Text behind a prompt of text; behind messages a list of one, which has what stands beside the text too."""
    if isinstance(row["prompt"], str):
        return str(row["response"])
    beside = {name: row[name] for name in BESIDE_THE_TEXT if row.get(name)}
    return [{"role": "assistant", "content": row["response"], **beside}]
