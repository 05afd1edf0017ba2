"""A prompt column and an answer column, named by `--data.input_key` and `--data.output_key`."""

from __future__ import annotations

from openrlhf.datasets.formats.chat import is_message_list
from openrlhf.datasets.formats.columns import answer_column, column, text_column
from openrlhf.datasets.formats.plain import prompt_answer
from openrlhf.datasets.formats.prompt_completion import conversation_of
from openrlhf.datasets.samples import Row, Sample
from openrlhf.datasets.settings import DataSettings


def fits(row: Row, settings: DataSettings) -> bool:
    return settings.output_key is not None and not settings.pretrain_mode


def read(row: Row, settings: DataSettings) -> Sample:
    input_key, output_key = settings.input_key or "input", settings.output_key or "output"
    prompt, answer = column(row, input_key), column(row, output_key)
    if settings.apply_chat_template or is_message_list(prompt):
        return conversation_of(prompt, answer, row, (input_key, output_key))
    return prompt_answer(text_column(row, input_key), answer_column(row, output_key), settings)
