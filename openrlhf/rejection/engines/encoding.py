"""Prompts as token ids, and the text of generated ids, for the engines that run in this process."""

from __future__ import annotations

from typing import Any

from openrlhf.datasets.tokenization.chat_template import resolve_chat_template
from openrlhf.errors import UserError, first_line_of
from openrlhf.rejection.prompts import Prompt

_NUM_TOKENS_BEFORE = 4  # enough for a character whose bytes several tokens hold


class PromptEncoder:
    """Encodes with one tokenizer; `template` is as of `--data.tokenizer_chat_template`."""

    def __init__(self, tokenizer: Any, template: str | None):
        self._tokenizer = tokenizer
        self._template = template
        self._known: tuple[str, list[int]] | None = None  # the samples of a prompt come one after another

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of the prompt as a model is to go on from them. Raises UserError where the template refuses it."""
        if self._known is None or self._known[0] != prompt.prompt_id:
            self._known = (prompt.prompt_id, self._encode(prompt))
        return self._known[1]

    def _encode(self, prompt: Prompt) -> list[int]:
        tokenizer = self._tokenizer
        if isinstance(prompt.content, str):
            ids = list(tokenizer(prompt.content)["input_ids"])
            bos = tokenizer.bos_token_id
            if bos is not None and ids[:2] == [bos, bos]:  # the text itself began with it
                ids = ids[1:]
            is_ended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
            return ids[:-1] if is_ended and not prompt.content.endswith(tokenizer.eos_token) else ids
        template = resolve_chat_template(tokenizer, self._template)
        try:
            return list(
                tokenizer.apply_chat_template(
                    prompt.content,
                    tools=prompt.tools,
                    chat_template=template,
                    add_generation_prompt=True,
                    return_dict=False,
                )
            )
        except Exception as error:  # a template may fail in any way that Python can
            raise UserError(
                f"The chat template refuses the prompt {str(prompt.content)[:200]}: {first_line_of(error)}"
            ) from error

    def decode(self, prompt_ids: list[int], answer_ids: list[int]) -> str:
        """The answer's text, without control tokens: what it adds to the prompt's, since some tokenizers drop a space
        that begins a text."""
        before = prompt_ids[-_NUM_TOKENS_BEFORE:]
        shared = self._text_of(before)
        whole = self._text_of(before + answer_ids)
        return whole[len(shared) :] if whole.startswith(shared) else self._text_of(answer_ids)

    def _text_of(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
