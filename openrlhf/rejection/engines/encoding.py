"""Prompts as token ids, and the text of generated ids, for the engines that run in this process."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from openrlhf.datasets.samples import BadRow
from openrlhf.datasets.tokenization.chat_template import ChatRenderer, resolve_chat_template
from openrlhf.errors import UserError
from openrlhf.models.limits import outside_vocabulary
from openrlhf.rejection.prompts import Prompt

_NUM_TOKENS_BEFORE = 4  # enough for a character whose bytes several tokens hold


def padded_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of prompts that end together, (B, S) each."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


class PromptRefused(UserError):
    """One prompt cannot be encoded, whatever the others are. Attributes: reason: a sentence's end."""

    def __init__(self, content: Any, reason: str):
        super().__init__(f"The prompt {str(content)[:200]} cannot be encoded: {reason}.")
        self.reason = reason


class PromptEncoder:
    """Encodes with one tokenizer; `template` is as of `--data.tokenizer_chat_template`, `config` that of the model."""

    def __init__(self, tokenizer: Any, template: str | None, config: PretrainedConfig | None = None):
        self._tokenizer = tokenizer
        self._template, self._config = template, config
        self._known: tuple[str, list[int]] | None = None  # the samples of a prompt come one after another

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of the prompt as a model is to go on from them.

        Raises PromptRefused where the template refuses it, or the model lacks one of its tokens; UserError where the
        template is none.
        """
        if self._known is None or self._known[0] != prompt.prompt_id:
            content = prompt.content
            ids = self._of_text(content) if isinstance(content, str) else self._of_messages(content, prompt.tools)
            if self._config is not None and (reason := outside_vocabulary(self._config, ids)):
                raise PromptRefused(content, reason)
            self._known = (prompt.prompt_id, ids)
        return self._known[1]

    def _of_text(self, text: str) -> list[int]:
        tokenizer = self._tokenizer
        ids = list(tokenizer(text)["input_ids"])
        bos = tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:  # the text itself began with it
            ids = ids[1:]
        is_ended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
        return ids[:-1] if is_ended and not text.endswith(tokenizer.eos_token) else ids

    def _of_messages(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> list[int]:
        try:
            text = self._renderer.prompt_of(messages, tools)
        except BadRow as error:
            raise PromptRefused(messages, str(error)) from error
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @functools.cached_property
    def _renderer(self) -> ChatRenderer:
        return ChatRenderer(self._tokenizer, resolve_chat_template(self._tokenizer, self._template))

    def decode(self, prompt_ids: list[int], answer_ids: list[int]) -> str:
        """The answer's text, without control tokens: what it adds to the prompt's, since some tokenizers drop a space
        that begins a text."""
        before = prompt_ids[-_NUM_TOKENS_BEFORE:]
        shared = self._text_of(before)
        whole = self._text_of(before + answer_ids)
        return whole[len(shared) :] if whole.startswith(shared) else self._text_of(answer_ids)

    def _text_of(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
