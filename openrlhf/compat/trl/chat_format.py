"""A base model and its tokenizer made ready for chats: by ChatML, or by another tokenizer's template."""

from __future__ import annotations

from typing import Any

from openrlhf.datasets.tokenization.chat_template import CHATML
from openrlhf.datasets.tokenizer import get_tokenizer
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
    _fit(model, tokenizer, resize_to_multiple_of)
    return model, tokenizer


def clone_chat_template(
    model: Any, tokenizer: Any, source_tokenizer_path: str, resize_to_multiple_of: int | None = 64
) -> tuple[Any, Any, list[int]]:
    """Gives the tokenizer the template of another one, with its end token and the special tokens that are missing.

    Args: others: as of `setup_chat_format`.

    Returns: the model and the tokenizer, both changed, and the ids of the tokens that are new.
    Raises UserError where the other tokenizer cannot be opened, or has no template.
    """
    source = get_tokenizer(source_tokenizer_path)
    if source.chat_template is None:
        raise UserError(f"{source_tokenizer_path} has no chat template: give a tokenizer that has one.")
    known = tokenizer.get_vocab()
    new = [token for token in source.added_tokens_decoder.values() if token.content not in known]
    tokenizer.add_tokens(new)
    tokenizer.chat_template, tokenizer.eos_token = source.get_chat_template(), source.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _fit(model, tokenizer, resize_to_multiple_of)
    return model, tokenizer, [tokenizer.convert_tokens_to_ids(token.content) for token in new]


def _fit(model: Any, tokenizer: Any, multiple_of: int | None) -> None:
    """Rows for all tokens, and the special ones in the model's settings."""
    model.resize_token_embeddings(
        max(len(tokenizer), model.get_input_embeddings().num_embeddings), pad_to_multiple_of=multiple_of
    )
    for settings in (model.config, getattr(model, "generation_config", None)):
        if settings is not None:
            settings.bos_token_id = tokenizer.bos_token_id
            settings.eos_token_id = tokenizer.eos_token_id
            settings.pad_token_id = tokenizer.pad_token_id
