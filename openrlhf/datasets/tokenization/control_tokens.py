"""Control tokens (`<|im_start|>`) that stand in the text of a row: kept apart from those that a template prints.

A tokenizer reads the characters of a control token as that token, whoever wrote them. So a text that holds some is read
by a copy of the tokenizer that knows its control tokens under other names of the same length, in private characters;
those that the template has printed are given these names, and those of the row are left as the text that they are.
What the template printed is known by a `BREAK`, a character without meaning that is put into each control token of
the row's own before the template sees it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import Tokenizer

from openrlhf.datasets.samples import BadRow
from openrlhf.datasets.tokenization.text_tokenizer import WholeText

BREAK = "\U0010ffff"
_FIRST_NAME = 0xF0000  # of the private characters


class ControlTokens:
    """The control tokens of one tokenizer: its added tokens that are marked as special."""

    def __init__(self, tokenizer: Any):
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        texts = [] if self._backend.encode_special_tokens else sorted(special, key=len, reverse=True)
        self._names = {text: chr(_FIRST_NAME + number) * len(text) for number, text in enumerate(texts)}
        self._pattern = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        self._first_characters = tuple({repr(text[0])[1:-1] for text in texts})
        self._copy: Tokenizer | None = None
        # of the control tokens in the copy, but for the unknown token, which any text may hold
        self._ids = set[int | None]()

    def found_in(self, value: Any) -> list[str]:
        """Those in a text, or in the texts of lists and objects."""
        written = repr(value)  # to look for one character in it is many times faster than to look for the tokens
        return list(self._all_in(value)) if any(map(written.__contains__, self._first_characters)) else []

    def _all_in(self, value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield from self._pattern.findall(value)
        for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from self._all_in(part)

    def broken(self, value: Any) -> Any:
        """A copy of a value with a `BREAK` behind the first character of each control token. Raises BadRow."""
        if isinstance(value, str):
            _check_free(value, BREAK)
            return self._pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], value)
        if isinstance(value, dict):
            return {self.broken(key): self.broken(part) for key, part in value.items()}
        return [self.broken(part) for part in value] if isinstance(value, list) else value

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where control tokens begin and end in a text."""
        return [match.span() for match in self._pattern.finditer(text)]

    def tokenize(self, text: str, add_special_tokens: bool, is_control: Callable[[int, int], bool]) -> WholeText:
        """The tokens of a text; offsets count the characters of the text as it is given.

        Args: is_control: whether the characters between two places, which are those of a control token, stand for it.
        Raises BadRow where they cannot be kept apart.
        """
        plain = text.replace(BREAK, "")
        _check_free(plain, chr(_FIRST_NAME))
        num_controls = 0

        def name(match: re.Match[str]) -> str:
            nonlocal num_controls
            if not is_control(*match.span()):
                return match[0]
            num_controls += copy.token_to_id(self._names[match[0]]) in self._ids
            return self._names[match[0]]

        copy = self._copy or self._make_copy()
        bare = copy.encode("", add_special_tokens=add_special_tokens)
        named = self._pattern.sub(name, text).replace(BREAK, "")
        encoding = copy.encode(named, add_special_tokens=add_special_tokens)
        if sum(one in self._ids for one in encoding.ids) != num_controls + sum(one in self._ids for one in bare.ids):
            raise BadRow("its control tokens cannot be told from its text: choose another --data.control_tokens")
        kept = [place for place, character in enumerate(text) if character != BREAK]
        return WholeText(encoding.ids, [(kept[a], kept[b - 1] + 1) if b > a else (0, 0) for a, b in encoding.offsets])

    def _make_copy(self) -> Tokenizer:
        parts = json.loads(self._backend.to_str())
        self._copy = copy = _under_other_names(parts, self._names)
        model = parts["model"]
        unknown = model["unk_id"] if "unk_id" in model else copy.token_to_id(model.get("unk_token") or "")
        self._ids = {copy.token_to_id(one) for one in self._names.values()} - {unknown}
        return copy


def _check_free(text: str, first_private: str) -> None:
    if text and max(text) >= first_private:
        raise BadRow("it holds control tokens and private characters of Unicode: remove one of them")


def _under_other_names(parts: dict[str, Any], names: dict[str, str]) -> Tokenizer:
    """A tokenizer of these parts, whose control tokens are written otherwise; their ids stay."""
    parts["truncation"] = parts["padding"] = None
    for token in parts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(word, word): number for word, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(parts))
