"""Samples → token ids and loss mask. Each text is tokenized once, as a whole; targets are found by offsets."""

from __future__ import annotations

from typing import Any

import numpy as np

from openrlhf.datasets.samples import (
    BadRow,
    Conversation,
    EncodedSample,
    LeftOut,
    PlainText,
    PromptAnswer,
    Sample,
    TokenRow,
)
from openrlhf.datasets.settings import DataSettings
from openrlhf.datasets.tokenization.chat_template import ChatRenderer, resolve_chat_template
from openrlhf.datasets.tokenization.marked_template import Span
from openrlhf.datasets.tokenization.text_tokenizer import TextTokenizer, TokenizedText
from openrlhf.datasets.tokenization.turn_choice import chosen_turns
from openrlhf.datasets.tokenization.turn_spans import TurnSpans
from openrlhf.errors import UserError

NO_TARGETS = "no target token"
NORMALIZER_SHRINKS_BY_AT_MOST = 4  # characters into one; NFKC's worst case on real text


class SampleEncoder:
    """Encodes samples with one tokenizer and one choice of settings."""

    def __init__(self, tokenizer: Any, settings: DataSettings):
        """Raises UserError if the tokenizer gives no character offsets."""
        if not tokenizer.is_fast:
            raise UserError(
                "The tokenizer gives no character offsets, without which targets cannot be found exactly: "
                "use a fast tokenizer (one with a tokenizer.json)."
            )
        self._tokenizer = tokenizer
        self._texts = TextTokenizer(tokenizer)
        self._settings = settings
        self._eos_id: int = tokenizer.eos_token_id
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._renderer: ChatRenderer | None = None

    def encode(self, sample: Sample) -> EncodedSample:
        """Ids and mask of the sample, within `max_len`.

        Raises BadRow if the row cannot be used, LeftOut if it does not become a sample.
        """
        if isinstance(sample, Conversation):
            ids, targets = self._conversation(sample)
        elif isinstance(sample, PromptAnswer):
            ids, targets = self._prompt_answer(sample)
        elif isinstance(sample, PlainText):
            ids, targets = self._plain_text(sample)
        else:
            return self._fit(*_token_row(sample))
        return self._fit(ids, _judging_next(targets))

    def _plain_text(self, sample: PlainText) -> tuple[np.ndarray, np.ndarray]:
        tokens = self._tokenize(sample.text, add_special_tokens=True)
        ids = self._with_end_token(tokens.ids[self._num_doubled_bos(tokens.ids) :])
        return ids, np.ones(len(ids), dtype=bool)

    def _prompt_answer(self, sample: PromptAnswer) -> tuple[np.ndarray, np.ndarray]:
        tokens = self._tokenize(sample.prompt + sample.answer, add_special_tokens=True)
        first = self._num_doubled_bos(tokens.ids)
        ids = self._with_end_token(tokens.ids[first:])
        border = 0 if self._settings.target_choice == "everything" else len(sample.prompt)
        targets = np.ones(len(ids), dtype=bool)
        targets[: len(tokens.ids) - first] = tokens.ending_behind(border)[first:]
        targets[-1] = True  # the end token, written by the text itself or by us
        return ids, targets

    def _with_end_token(self, ids: np.ndarray) -> np.ndarray:
        return ids if len(ids) and ids[-1] == self._eos_id else np.append(ids, np.int32(self._eos_id))

    def _conversation(self, sample: Conversation) -> tuple[np.ndarray, np.ndarray]:
        self._open_renderer()
        assert self._renderer is not None
        render = self._renderer.render(sample.messages, sample.tools)
        tokens = self._tokenize(render.text, add_special_tokens=False)
        first = self._num_doubled_bos(tokens.ids)
        ids = tokens.ids[first:]
        if self._settings.target_choice == "everything":
            return ids, np.ones(len(ids), dtype=bool)
        spans = self._spans.of(sample, render, chosen_turns(sample, self._settings.target_choice))
        starts, ends = _starts_and_ends(tokens.offsets()[first:])
        _check_borders(render.text, starts, ends, spans)
        return ids, _overlapping(starts, ends, spans)

    def _open_renderer(self) -> None:
        if self._renderer is None:
            template = resolve_chat_template(self._tokenizer, self._settings.tokenizer_chat_template)
            self._renderer = ChatRenderer(self._tokenizer, template)
            self._spans = TurnSpans(self._renderer, self._tokenizer)

    def _tokenize(self, text: str, add_special_tokens: bool) -> TokenizedText:
        self._check_text(text)
        return self._texts.tokenize(text, add_special_tokens)

    def _check_text(self, text: str) -> None:
        try:
            text.isascii() or text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow(
                f"the text holds half a surrogate pair ({text[error.start]!a} at character {error.start + 1}), "
                "which is no valid Unicode: repair the row, or the program that wrote it"
            ) from None
        hopeless = self._settings.max_len * self._longest_token * NORMALIZER_SHRINKS_BY_AT_MOST
        if len(text) > hopeless and self._settings.overlong != "truncate":
            self._refuse_overlong(f"{len(text):,} characters")

    def _num_doubled_bos(self, ids: np.ndarray) -> int:
        """1 if the text itself began with the start token that the tokenizer adds."""
        bos = self._tokenizer.bos_token_id
        return int(bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos)

    def _fit(self, ids: np.ndarray, loss_mask: np.ndarray) -> EncodedSample:
        """Applies the policy for samples longer than `max_len`; leaves out what has no target token."""
        max_len = self._settings.max_len
        cut = len(ids) > max_len
        if cut and self._settings.overlong != "truncate":
            self._refuse_overlong(f"{len(ids):,} tokens")
        sample = EncodedSample(ids[:max_len], loss_mask[:max_len].copy(), was_cut=cut)
        if len(ids):
            sample.loss_mask[-1] = 0
        if not sample.loss_mask.any():
            raise LeftOut(f"{NO_TARGETS} within max_len" if cut else NO_TARGETS)
        return sample

    def _refuse_overlong(self, length: str) -> None:
        if self._settings.overlong == "drop":
            raise LeftOut("longer than max_len")
        raise BadRow(
            f"{length} do not fit into --data.max_len {self._settings.max_len}: raise it, "
            "or choose --data.overlong drop or truncate"
        )


def _starts_and_ends(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the characters of each token begin and end, `(L,)` each.

    Some tokenizers trim white space out of their offsets: a token then begins where the one before it ended.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    return np.minimum(starts, np.append(0, ends[:-1])), ends


def _overlapping(starts: np.ndarray, ends: np.ndarray, spans: list[Span]) -> np.ndarray:
    """True for each token that stands for at least one character of a span."""
    targets = np.zeros(len(starts), dtype=bool)
    for span in spans:
        targets |= (starts < span.end) & (ends > span.start)
    return targets


def _check_borders(text: str, starts: np.ndarray, ends: np.ndarray, spans: list[Span]) -> None:
    """A token over a span's border may hold white space of the other side, nothing else; raises BadRow."""
    for span in spans:
        for border, outside in ((span.start, slice(None, span.start)), (span.end, slice(span.end, None))):
            for token in np.flatnonzero((starts < border) & (ends > border)):
                part = text[starts[token] : ends[token]]
                other_side = part[: border - starts[token]] if outside.stop else part[border - starts[token] :]
                if other_side.strip():
                    raise BadRow(
                        f"the token {part!r} reaches over the border of what the assistant says, "
                        "so its targets are not exact"
                    )


def _judging_next(targets: np.ndarray) -> np.ndarray:
    """Which tokens are targets → the contract's loss mask, where index t judges token t+1."""
    mask = np.zeros(len(targets), dtype=np.uint8)
    mask[:-1] = targets[1:]
    return mask


def _token_row(sample: TokenRow) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(sample.input_ids, dtype=np.int32), np.asarray(sample.loss_mask, dtype=np.uint8)
