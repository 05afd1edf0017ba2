"""The rule by which answers are judged: the result behind the working is the label's. Signature of TRL's rewards."""

from __future__ import annotations


def correct(completions: list, label: list[str], **columns: list) -> list[float]:
    """1 for each answer that ends with the right result, else 0."""
    return [float(text_of(one).rpartition(": ")[2] == right) for one, right in zip(completions, label, strict=True)]


def text_of(completion: str | list[dict]) -> str:
    """Of a text, or of messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
