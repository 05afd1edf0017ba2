"""Text → token ids and their character offsets: by words where that is certain, else as a whole.

A byte-level tokenizer first cuts a text into words by a regular expression, and then tokenizes every word on its own:

    "Coffee, and tea."  →  "Coffee" "," " and" " tea" "."  →  ids of each, one after the other

So the cut can be made here, and the tokenizer be asked about words that are new; most were seen before: the same ids
and offsets in a third of the time. This is done only where the result is certain to be the same: for expressions that
are known (`KNOWN_PATTERNS`), for tokenizers that do nothing else with words (`word_tokenizer_of`), and for texts of
characters whose kind (letter, number, white space, neither) is the same in every version of Unicode. All other texts
go to the tokenizer.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, chain
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

# ASCII, Latin-1 and common punctuation: none of them is composed or decomposed by NFC.
_SAFE = r"\x00-\x7f\u00a1-\u00ff\u2010-\u2027\u2030-\u205e\u20ac"
_LETTERS = r"A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff"
_NUMBERS = r"0-9\u00b2\u00b3\u00b9\u00bc-\u00be"
_SPACES = r"\t-\r\x20"

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN, LLAMA3_PATTERN = _LATER_PATTERN % "", _LATER_PATTERN % "{1,3}"
KNOWN_PATTERNS = (GPT2_PATTERN, QWEN2_PATTERN, LLAMA3_PATTERN)

MAX_WORDS_KEPT = 1 << 17
MAX_WORD_CHARACTERS_KEPT = 64

_is_safe = re.compile(f"[{_SAFE}]*").fullmatch


class TextTokenizer:
    """The ids and offsets of `tokenizer(text)`, untruncated and unpadded, in less time.

    Attributes:
        is_plain: calling the tokenizer is calling its backend.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.is_plain = _only_calls_its_backend(tokenizer)
        self._words = word_tokenizer_of(tokenizer.backend_tokenizer) if self.is_plain else None

    def tokenize(self, text: str, add_special_tokens: bool) -> TokenizedText:
        """The tokens of a text that is valid Unicode."""
        tokens = self._words.encode(text, add_special_tokens) if self._words else None
        return tokens or self.tokenize_whole(text, add_special_tokens)

    def tokenize_whole(self, text: str, add_special_tokens: bool) -> WholeText:
        """The same without the short way over words."""
        if self.is_plain:
            encoding = _encoded(self._tokenizer.backend_tokenizer, text, add_special_tokens)
            return WholeText(encoding.ids, encoding.offsets)
        encoding = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, return_attention_mask=False,
            return_token_type_ids=False, truncation=False, verbose=False,
        )  # fmt: skip
        return WholeText(encoding["input_ids"], encoding["offset_mapping"])


def _encoded(backend: Tokenizer, text: str, add_special_tokens: bool) -> Encoding:
    """As calling the tokenizer does it: what its file, or an earlier call, says of length does not count."""
    backend.no_truncation()
    backend.no_padding()
    return backend.encode(text, add_special_tokens=add_special_tokens)


def _only_calls_its_backend(tokenizer: Any) -> bool:
    """Whether calling the tokenizer is calling its backend: a class of its own may do more with a text."""
    kind = type(tokenizer)
    is_plain = all(
        getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None)
        for name in ("__call__", "_encode_plus", "_batch_encode_plus")
    )
    return is_plain and tokenizer.backend_tokenizer.encode_special_tokens == tokenizer.split_special_tokens


class WholeText:
    """The tokenizer's own answer for a text: its tokens' `ids`, `(L,)` int32."""

    def __init__(self, ids: list[int], offsets: list[tuple[int, int]]):
        self.ids = np.array(ids, dtype=np.int32)
        self._offsets = offsets

    def offsets(self) -> np.ndarray:
        """Begin and end of each token's characters, `(L, 2)` int64; an added special token has 0 and 0."""
        return np.fromiter(chain.from_iterable(self._offsets), np.int64, 2 * len(self._offsets)).reshape(-1, 2)

    def ending_behind(self, position: int) -> np.ndarray:
        """True for each token that ends behind character `position`, `(L,)` bool."""
        return self.offsets()[:, 1] > position


class WordTokens:
    """The same of a text as words: ids at once, offsets when they are asked for."""

    def __init__(self, words: list[str], ids: list[int], tokens_by_word: _TokensByWord, added: tuple[int, int]):
        """`added`: how many special tokens the tokenizer put before and behind the words'."""
        self.ids = np.array(ids, dtype=np.int32)
        self._words, self._tokens_by_word, self._added = words, tokens_by_word, added

    def ending_behind(self, position: int) -> np.ndarray:
        """True for each token that ends behind character `position`, `(L,)` bool."""
        last = len(self.ids) - self._added[1]
        ending = np.zeros(len(self.ids), dtype=bool)
        ending[self._first_ending_behind(position, last) : last] = True
        return ending

    def _first_ending_behind(self, position: int, last: int) -> int:
        """The first of the words' tokens that ends there; `last` if none does. Ends grow from token to token."""
        # Words that end before the position are passed over by their lengths alone, without their offsets.
        ends = list(accumulate(map(len, self._words)))
        first = bisect_right(ends, position)
        token = self._added[0] + sum(map(len, map(self._tokens_by_word.__getitem__, self._words[:first])))
        for word, end in zip(self._words[first:], ends[first:], strict=True):
            for _, end_in_word in self._tokens_by_word.offsets(word):
                if end - len(word) + end_in_word > position:
                    return token
                token += 1
        return last

    def offsets(self) -> np.ndarray:
        """Begin and end of each token's characters, `(L, 2)`; added special tokens have 0 and 0."""
        pairs = [(0, 0)] * self._added[0]
        begin = 0
        for word in self._words:
            pairs += [(begin + start, begin + end) for start, end in self._tokens_by_word.offsets(word)]
            begin += len(word)
        return np.array(pairs + [(0, 0)] * self._added[1], dtype=np.int64).reshape(-1, 2)


TokenizedText = WholeText | WordTokens


class WordTokenizer:
    """Tokenizes by words what can be; made by `word_tokenizer_of`."""

    def __init__(self, backend: Tokenizer, cut: re.Pattern, added_ids: tuple[list[int], list[int]]):
        """`cut`: finds words; `added_ids`: what stands before and behind every text."""
        self._cut = cut
        self._tokens_by_word = _TokensByWord(backend)
        self._before, self._behind = added_ids
        added = backend.get_added_tokens_decoder().values()
        self._awkward = _any_of(token.content for token in added if _is_awkward(token))
        self._plain = _any_of(token.content for token in added if not _is_awkward(token))

    def encode(self, text: str, add_special_tokens: bool) -> WordTokens | None:
        """The text's tokens; None where only the tokenizer itself can say."""
        if not _is_safe(text) or (self._awkward and self._awkward.search(text)):
            return None
        words = self._words(text)
        if words is None:
            return None
        ids = list(chain.from_iterable(map(self._tokens_by_word.__getitem__, words)))
        if not add_special_tokens:
            return WordTokens(words, ids, self._tokens_by_word, (0, 0))
        added = (len(self._before), len(self._behind))
        return WordTokens(words, [*self._before, *ids, *self._behind], self._tokens_by_word, added)

    def _words(self, text: str) -> list[str] | None:
        """The text in words, added tokens among them as they are; None where the words leave something out."""
        if self._plain is None or not self._plain.search(text):
            words = self._cut.findall(text)
        else:
            words = []
            # The pattern is one group, so the split gives text and added tokens in turn.
            for number, part in enumerate(self._plain.split(text)):
                words += [part] if number % 2 else self._cut.findall(part)
        return words if sum(map(len, words)) == len(text) else None


class _TokensByWord(dict[str, tuple[int, ...]]):
    """The ids of each word, asked of the tokenizer when they are first needed."""

    def __init__(self, backend: Tokenizer):
        self._backend = backend
        self._offsets: dict[str, list[tuple[int, int]]] = {}

    def __missing__(self, word: str) -> tuple[int, ...]:
        encoding = _encoded(self._backend, word, add_special_tokens=False)
        ids = tuple(encoding.ids)
        if len(word) <= MAX_WORD_CHARACTERS_KEPT:  # a longer one seldom comes again
            if len(self) >= MAX_WORDS_KEPT:
                self.clear()
                self._offsets.clear()
            self[word], self._offsets[word] = ids, encoding.offsets
        return ids

    def offsets(self, word: str) -> list[tuple[int, int]]:
        """Begin and end of each token within the word."""
        known = self._offsets.get(word)
        return known if known is not None else _encoded(self._backend, word, add_special_tokens=False).offsets


def word_tokenizer_of(backend: Tokenizer) -> WordTokenizer | None:
    """The tokenizer by words; None unless every step of `backend` is known to treat each word on its own.

    Its steps are: normalizer (NFC leaves safe characters as they are), pre-tokenizer (cuts words), model (words to
    ids; without dropout, which would make it random), post-processor (puts special tokens around).
    """
    pattern = _pattern_of(_as_json(backend.pre_tokenizer))
    normalizer = _as_json(backend.normalizer)["type"]
    if pattern not in KNOWN_PATTERNS or normalizer not in (None, "NFC") or backend.encode_special_tokens:
        return None
    added_ids = _added_ids(backend)
    if added_ids is None or getattr(backend.model, "dropout", None):
        return None
    return WordTokenizer(backend, _in_safe_characters(pattern), added_ids)


def _as_json(component: Any) -> dict[str, Any]:
    """A component's settings; `{"type": None}` for one that is not there or written in Python."""
    try:
        return json.loads(component.__getstate__()) if component is not None else {"type": None}
    except Exception:  # a component of the user's own cannot be written down
        return {"type": "custom"}


def _pattern_of(pre_tokenizer: dict[str, Any]) -> str | None:
    """The expression that cuts words, where nothing else is done to them than to write their bytes as characters."""
    if _is_byte_level(pre_tokenizer, use_regex=True):
        return GPT2_PATTERN
    steps = pre_tokenizer.get("pretokenizers", [])
    if pre_tokenizer["type"] != "Sequence" or len(steps) != 2 or not _is_byte_level(steps[1], use_regex=False):
        return None
    split = steps[0]
    cuts_only = split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    return split["pattern"].get("Regex") if cuts_only else None


def _is_byte_level(step: dict[str, Any], use_regex: bool) -> bool:
    return step["type"] == "ByteLevel" and not step["add_prefix_space"] and step["use_regex"] == use_regex


def _in_safe_characters(pattern: str) -> re.Pattern:
    r"""The expression for Python's `re`, which has no `\p{L}`: such classes are written out, safe characters alone.

    Within brackets a class is put as it is, elsewhere in brackets of its own.
    """
    classes = {r"\p{L}": _LETTERS, r"\p{N}": _NUMBERS, r"\s": _SPACES}
    parts = re.split(r"(\[[^]]*\])", pattern.replace(r"\S", r"[^\s]"))
    for number, part in enumerate(parts):
        for name, characters in classes.items():
            part = part.replace(name, characters if number % 2 else f"[{characters}]")
        parts[number] = part
    return re.compile("".join(parts))


def _added_ids(backend: Tokenizer) -> tuple[list[int], list[int]] | None:
    """Ids that the tokenizer puts before and behind every text; None if that cannot be told."""
    kind = _as_json(backend.post_processor)
    if not all(map(_treats_words_alike, kind.get("processors", [kind]))):
        return None
    whole, bare = (_encoded(backend, "a", add_special_tokens=special).ids for special in (True, False))
    # The ids with special tokens hold those without at one place: around it are the added ones.
    places = [place for place in range(len(whole)) if whole[place : place + len(bare)] == bare]
    if len(places) != 1:
        return None
    return whole[: places[0]], whole[places[0] + len(bare) :]


def _treats_words_alike(step: dict[str, Any]) -> bool:
    """Whether a step behind the model treats a text's first word as every other."""
    trims_first_in_its_own_way = step.get("trim_offsets") and step.get("add_prefix_space")
    is_known = step["type"] in (None, "ByteLevel", "TemplateProcessing", "RobertaProcessing")
    return is_known and not trims_first_in_its_own_way


def _is_awkward(token: Any) -> bool:
    """Whether a token of its own is found in another way than by its plain text."""
    return token.lstrip or token.rstrip or token.single_word or token.normalized


def _any_of(texts: Iterable[str]) -> re.Pattern | None:
    """Finds any of the texts, the longest where several begin."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
