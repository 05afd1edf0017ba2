"""setup_chat_format: a base model and its tokenizer made ready for ChatML."""

from __future__ import annotations

from typing import Any

from openrlhf.datasets.tokenization.chat_template import CHATML
from openrlhf.errors import UserError

_START, _END = "<|im_start|>", "<|im_end|>"


def setup_chat_format(
    model: Any, tokenizer: Any, format: str = "chatml", resize_to_multiple_of: int | None = None
) -> tuple[Any, Any]:
    """Gives the tokenizer ChatML's template and tokens, and the model rows for them.

    Args: resize_to_multiple_of: the model's embedding gets a multiple of so many rows.

    Returns: the model and the tokenizer, both changed.
    Raises UserError where the tokenizer has a template already, or `format` is another one.
    """
    if tokenizer.chat_template is not None:
        raise UserError(
            "the tokenizer has a chat template: set tokenizer.chat_template to None to give it another one."
        )
    if format != "chatml":
        raise UserError(f"setup_chat_format(format={format!r}): chatml is the one that is here.")
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = _START, _END, _END
    tokenizer.add_special_tokens({"additional_special_tokens": [_START, _END]})
    tokenizer.chat_template = CHATML
    model.resize_token_embeddings(
        max(len(tokenizer), model.get_input_embeddings().num_embeddings), pad_to_multiple_of=resize_to_multiple_of
    )
    for settings in (model.config, getattr(model, "generation_config", None)):
        if settings is not None:
            settings.bos_token_id = tokenizer.bos_token_id
            settings.eos_token_id = tokenizer.eos_token_id
            settings.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
