"""Text → token ids and their character offsets: by words where that is certain, else as a whole."""

from __future__ import annotations

from itertools import chain
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

from openrlhf.datasets.tokenization.words import word_tokenizer_of


class TokenizedText(Protocol):
    """The tokens of one text."""

    @property
    def ids(self) -> np.ndarray:
        """`(L,)` int32."""

    def offsets(self) -> np.ndarray:
        """Begin and end of each token's characters, `(L, 2)` int64; an added special token has 0 and 0."""

    def ending_behind(self, position: int) -> np.ndarray:
        """True for each token that ends behind character `position`, `(L,)` bool."""


class WholeText:
    """The tokenizer's own answer for a text."""

    def __init__(self, ids: list[int], offsets: list[tuple[int, int]]):
        self.ids = np.array(ids, dtype=np.int32)
        self._offsets = offsets

    def offsets(self) -> np.ndarray:
        return np.fromiter(chain.from_iterable(self._offsets), np.int64, 2 * len(self._offsets)).reshape(-1, 2)

    def ending_behind(self, position: int) -> np.ndarray:
        return self.offsets()[:, 1] > position


class TextTokenizer:
    """The ids and offsets of `tokenizer(text)`, untruncated and unpadded, in less time."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._is_plain = _only_calls_its_backend(tokenizer)
        self._words = word_tokenizer_of(tokenizer.backend_tokenizer) if self._is_plain else None

    def tokenize(self, text: str, add_special_tokens: bool) -> TokenizedText:
        """The tokens of a text that is valid Unicode."""
        tokens = self._words.encode(text, add_special_tokens) if self._words else None
        return tokens or self.tokenize_whole(text, add_special_tokens)

    def tokenize_whole(self, text: str, add_special_tokens: bool) -> WholeText:
        """The same without the short way over words."""
        if not self._is_plain:
            return self._ask_wrapper(text, add_special_tokens)
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encoding = backend.encode(text, add_special_tokens=add_special_tokens)
        return WholeText(encoding.ids, encoding.offsets)

    def _ask_wrapper(self, text: str, add_special_tokens: bool) -> WholeText:
        encoding = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, return_attention_mask=False,
            return_token_type_ids=False, truncation=False, verbose=False,
        )  # fmt: skip
        return WholeText(encoding["input_ids"], encoding["offset_mapping"])


def _only_calls_its_backend(tokenizer: Any) -> bool:
    """Whether calling the tokenizer is calling its backend: a class of its own may do more with a text."""
    kind = type(tokenizer)
    is_plain = all(
        getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None)
        for name in ("__call__", "_encode_plus", "_batch_encode_plus")
    )
    return is_plain and tokenizer.backend_tokenizer.encode_special_tokens == tokenizer.split_special_tokens
