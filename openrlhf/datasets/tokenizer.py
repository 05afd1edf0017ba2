"""Opening a tokenizer so that it can train: a fast one, with an end token and a pad token."""

from __future__ import annotations

import os
from typing import Any

from packaging.version import Version

from openrlhf.datasets.hub import hub_can_be_asked
from openrlhf.errors import UserError, first_line_of
from openrlhf.versions import installed


def get_tokenizer(
    name_or_path: str,
    padding_side: str | None = None,
    use_fast: bool = True,
    trust_remote_code: bool = False,
    eos_token: str | None = None,
) -> Any:
    """Opens the tokenizer of a model folder or hub name.

    A tokenizer without pad token pads with its end token: padding is masked by length, never by id, so nothing is
    lost. One with neither end nor pad token is refused, because no answer could ever be ended.

    Args: padding_side: "left" or "right"; None: its own, which an export keeps. Nothing here pads by it.

    Raises UserError if there is no tokenizer, or no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path,
            **({} if padding_side is None else {"padding_side": padding_side}),
            use_fast=use_fast,
            trust_remote_code=trust_remote_code,
            # mistral-common's tokenizer, taken where it is installed, gives no character offsets
            **({"mistral_format": False} if Version(installed("transformers") or "0") >= Version("5.23") else {}),
            local_files_only=not os.path.isdir(name_or_path) and not hub_can_be_asked(),
        )
    except Exception as error:  # a damaged file fails in any way
        raise UserError(_no_tokenizer(name_or_path, error)) from error
    if eos_token is not None:
        set_end_token(tokenizer, eos_token)
    prepare_special_tokens(tokenizer, name_or_path)
    return tokenizer


def set_end_token(tokenizer: Any, eos_token: str) -> None:
    """Gives the tokenizer another end token of its vocabulary. Raises UserError where it has none of that name."""
    _check_token(tokenizer, "--data.eos_token", eos_token)
    tokenizer.eos_token = eos_token


def set_pad_token(tokenizer: Any, pad_token: str) -> None:
    """As `set_end_token`."""
    _check_token(tokenizer, "pad_token", pad_token)
    tokenizer.pad_token = pad_token


def _check_token(tokenizer: Any, setting: str, token: str) -> None:
    if token not in tokenizer.get_vocab():
        raise UserError(
            f"{setting} {token!r} is no token of the tokenizer's vocabulary: give one that is, or add it to the "
            "tokenizer and the model first."
        )


def prepare_special_tokens(tokenizer: Any, name: str = "the tokenizer") -> None:
    """Gives a tokenizer without pad token one; raises UserError if it has no end token."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name} has no end token (eos_token), so a model trained with it would never stop. "
            'Set "eos_token" in its tokenizer_config.json to the token that ends a text.'
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def check_gives_offsets(tokenizer: Any) -> None:
    """Raises UserError if the tokenizer gives no character offsets."""
    if not getattr(tokenizer, "is_fast", False):  # MistralCommonBackend has no such attribute
        raise UserError(
            f"The tokenizer ({type(tokenizer).__name__}) gives no character offsets, without which targets cannot be "
            "found exactly: use a fast tokenizer (one with a tokenizer.json)."
        )


def _no_tokenizer(name: str, error: Exception) -> str:
    first_line = first_line_of(error)
    if os.path.isdir(name):
        return f"{name} holds no tokenizer that can be opened (tokenizer.json, tokenizer_config.json): {first_line}"
    return f"No tokenizer at {name!r}: it is no local folder and could not be fetched from the hub: {first_line}"
