"""A conversation in the terminal: what `openrlhf.cli.chat` does."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from transformers import TextStreamer, set_seed

from openrlhf.config.chat_settings import ChatConfig
from openrlhf.datasets.tokenization.chat_template import template_text
from openrlhf.datasets.tokenizer import get_tokenizer
from openrlhf.errors import UserError
from openrlhf.models.limits import num_positions
from openrlhf.rejection.engines.encoding import PromptEncoder
from openrlhf.rejection.engines.transformers_engine import load_for_answers
from openrlhf.rejection.prompts import Prompt


def chat(config: ChatConfig) -> None:
    """Answers each line of standard input, token by token, until the input ends. An empty line forgets what was said.

    Raises UserError where the conversation does not fit into the model's positions.
    """
    model_settings, settings = config.model, config.chat
    name = model_settings.model_name_or_path
    tokenizer = get_tokenizer(name, trust_remote_code=model_settings.trust_remote_code)
    model = load_for_answers(name, settings.param_dtype, model_settings.trust_remote_code)
    template = settings.tokenizer_chat_template
    has_template = template_text(tokenizer, template) is not None
    if not has_template:
        print(f"{name} has no chat template: each line is continued as text.", file=sys.stderr)
    set_seed(settings.seed % 2**32)  # the most that numpy takes
    start = [{"role": "system", "content": settings.system}] if settings.system else []
    messages = list(start)
    for line in _lines():
        if not line.strip():
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        ids = PromptEncoder(tokenizer, template, model.config).encode(Prompt("", messages if has_template else line))
        messages.append({"role": "assistant", "content": _answer(model, tokenizer, ids, config)})


def _lines() -> Iterator[str]:
    """Of standard input; a person is shown a mark to write behind. A line that is no UTF-8 is told, and left out."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # else an error takes the lines behind it along
        with suppress(io.UnsupportedOperation):  # something is read already
            sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
            line.encode()
        except EOFError:
            return
        except UnicodeEncodeError:
            print(f"the line {line!r} is no UTF-8, and is left out: write it again.", file=sys.stderr, flush=True)
        else:
            yield line


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any, ids: list[int], config: ChatConfig) -> str:
    """The text, which is also printed as it comes."""
    settings = config.chat
    most = num_positions(model.config)
    if most is not None and len(ids) >= most:
        raise UserError(f"The conversation has {len(ids):,} tokens, and the model {most:,} positions: begin anew.")
    prompt = torch.tensor([ids], device=model.device)
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.temperature else {}
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=settings.temperature > 0,
        max_new_tokens=settings.max_new_tokens if most is None else min(settings.max_new_tokens, most - len(ids)),
        pad_token_id=tokenizer.pad_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **sampling,
    )
    return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
