"""Alpaca's columns: `instruction`, an `input` that may be empty, and `output`."""

from __future__ import annotations

from openrlhf.datasets.formats.columns import answer_column, text_column
from openrlhf.datasets.formats.plain import prompt_answer
from openrlhf.datasets.formats.prompt_completion import conversation_of
from openrlhf.datasets.samples import Row, Sample
from openrlhf.datasets.settings import DataSettings


def fits(row: Row, settings: DataSettings) -> bool:
    return settings.output_key is None and not settings.pretrain_mode and {"instruction", "output"} <= set(row)


def read(row: Row, settings: DataSettings) -> Sample:
    prompt, answer = text_column(row, "instruction"), answer_column(row, "output")
    if row.get("input"):
        prompt = f"{prompt}\n\n{text_column(row, 'input')}"
    if settings.apply_chat_template:
        return conversation_of(prompt, answer, row, ("instruction", "output"))
    return prompt_answer(prompt, answer, settings)
