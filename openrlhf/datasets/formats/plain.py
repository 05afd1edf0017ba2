"""Putting a prompt into the user's template."""

from __future__ import annotations

from openrlhf.datasets.samples import PromptAnswer
from openrlhf.datasets.settings import DataSettings


def prompt_answer(prompt: str, answer: str, settings: DataSettings) -> PromptAnswer:
    """The pair that is trained without a chat template."""
    if settings.input_template is not None:
        prompt = settings.input_template.format(prompt)
    return PromptAnswer(prompt, answer)
