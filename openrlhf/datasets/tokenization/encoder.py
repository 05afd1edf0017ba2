"""The content of a row → token ids and loss mask. Each text is tokenized once, as a whole; offsets tell its targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from openrlhf.config import DataConfig
from openrlhf.datasets.samples import (
    BadRow,
    Conversation,
    EncodedSample,
    LeftOut,
    PlainText,
    RowContent,
    TokenRow,
    check_unicode,
)
from openrlhf.datasets.tokenization.chat_template import ChatRenderer, resolve_chat_template, templates_by_name
from openrlhf.datasets.tokenization.control_tokens import ControlTokens
from openrlhf.datasets.tokenization.marked_template import CharSpan
from openrlhf.datasets.tokenization.text_tokenizer import TextTokenizer, TokenizedText
from openrlhf.datasets.tokenization.turns import TurnSpans, chosen_turns, target_choice
from openrlhf.datasets.tokenization.unprinted import check_printed
from openrlhf.datasets.tokenizer import check_gives_offsets

CONTROL_TOKENS_ARE_TEXT = "in the text of rows are encoded as text (--data.control_tokens text)"
CONTROL_TOKENS_ARE_KEPT = "in the text of rows are control tokens (--data.control_tokens keep)"
TOOL_TEMPLATE = "tool_use"  # as transformers names it
NO_TARGETS = "no target token"
NOTHING_BEFORE_THE_ANSWER = (
    "no token stands before the answer, whose first token is therefore no target (no prompt, and no start token)"
)
NORMALIZER_SHRINKS_BY_AT_MOST = 4  # characters into one; NFKC's worst case on real text


class SampleEncoder:
    """Encodes rows with one tokenizer and one choice of settings."""

    def __init__(self, tokenizer: Any, data: DataConfig, pretrain_mode: bool = False):
        """Raises UserError if the tokenizer gives no character offsets."""
        check_gives_offsets(tokenizer)
        self._tokenizer = tokenizer
        self._texts = TextTokenizer(tokenizer)
        self._controls = ControlTokens(tokenizer)
        self._data, self.max_len = data, data.max_len
        self._targets = target_choice(data, pretrain_mode)
        self._remarks: set[str] = set()  # on the row that is being encoded
        self._ends_texts = data.pretrain_end_token or not pretrain_mode
        self._eos_id: int = tokenizer.eos_token_id
        vocabulary = tokenizer.get_vocab()
        self._longest_token, self._num_ids = max(map(len, vocabulary)), max(vocabulary.values()) + 1

    def encode(self, content: RowContent, row_weight: float = 1.0) -> EncodedSample:
        """Ids and mask of a row, within `max_len`; each target weighs its turn's weight times `row_weight`.

        Raises BadRow if the row cannot be used, LeftOut if it does not become a sample.
        """
        self._remarks = set(content.remarks)
        if isinstance(content, TokenRow):
            self._check_ids(content.input_ids)
            ids = np.asarray(content.input_ids, dtype=np.int32)
            return self._fit(ids, np.asarray(content.loss_mask, dtype=np.uint8), row_weight)
        if isinstance(content, Conversation):
            ids, targets = self._conversation(content)
        else:
            ids, targets = self._plain_text(content)
        return self._fit(ids, _judging_next(targets), row_weight)

    def _check_ids(self, ids: list[int]) -> None:
        if outside := next((one for one in ids if not 0 <= one < self._num_ids), None):
            raise BadRow(
                f"the token id {str(outside)[:30]} is not in the vocabulary, whose ids are 0 to {self._num_ids - 1}: "
                "the row was tokenized for another model"
            )

    def _judge_controls(self, found: list[str]) -> bool:
        """Whether control tokens in a row's own text are to be read as text. Raises BadRow if they are refused."""
        choice = self._data.control_tokens
        if found and choice == "refuse":
            raise BadRow(f"the text holds the control token {found[0]!r}, which --data.control_tokens refuse refuses")
        what = CONTROL_TOKENS_ARE_TEXT if choice == "text" else CONTROL_TOKENS_ARE_KEPT
        self._remarks.update(f"the characters {token!r} {what}" for token in found)
        return bool(found) and choice == "text"

    # Each of the next two gives the ids, (L,) int32, and the targets beside them, (L,): bool, or weights as float32.

    def _plain_text(self, content: PlainText) -> tuple[np.ndarray, np.ndarray]:
        is_control = self._trusted_places(content)
        tokens = self._tokenize(content.text, add_special_tokens=True, is_control=is_control)
        first, end = self._num_doubled_bos(tokens.ids), len(tokens.ids) - self._num_doubled_eos(tokens)
        ids = self._with_end_token(tokens.ids[first:end])
        targets = np.ones(len(ids), dtype=bool)
        if content.num_prompt_characters is not None:
            border = 0 if self._targets == "everything" else content.num_prompt_characters
            targets[: end - first] = tokens.ending_behind(border)[first:end]
            targets[-1] = True  # the end token, written by the text itself or by us
            if targets[0] and self._targets != "everything":
                self._remarks.add(NOTHING_BEFORE_THE_ANSWER)
        return ids, targets

    def _trusted_places(self, content: PlainText) -> Callable[[int, int], bool] | None:
        """Tells control tokens of the user's template from those of the row; None: the row's own text has none.

        A start token that begins the text, and an end token that ends it, are what they seem.
        """
        text, trusted = content.text, [*content.template_spans]
        if not self._controls.found_in(text):
            return None
        bos, eos = self._tokenizer.bos_token, self._tokenizer.eos_token
        trusted += [(0, len(bos))] if bos and text.startswith(bos) else []
        trusted += [(len(text) - len(eos), len(text))] if text.endswith(eos) else []

        def is_control(start: int, end: int) -> bool:
            return any(first <= start and end <= last for first, last in trusted)

        found = [text[start:end] for start, end in self._controls.spans(text) if not is_control(start, end)]
        return is_control if self._judge_controls(found) else None

    def _with_end_token(self, ids: np.ndarray) -> np.ndarray:
        is_ended = len(ids) and ids[-1] == self._eos_id
        return ids if is_ended or not self._ends_texts else np.append(ids, np.int32(self._eos_id))

    def _conversation(self, content: Conversation) -> tuple[np.ndarray, np.ndarray]:
        if content.tools and self._passes_over_tools:
            raise BadRow(
                f"the row has tools, for which the tokenizer has a chat template of its own, {TOOL_TEMPLATE!r}: "
                f"choose it for all rows by --data.tokenizer_chat_template {TOOL_TEMPLATE}"
            )
        is_broken = self._judge_controls(self._controls.found_in([content.messages, content.tools]))
        if is_broken:
            messages, tools = self._controls.broken([content.messages, content.tools])
            content = replace(content, messages=messages, tools=tools)
        render = self._renderer.render(content.messages, content.tools)
        tokens = self._tokenize(render.text, add_special_tokens=False, is_control=_always if is_broken else None)
        first = self._num_doubled_bos(tokens.ids)
        ids = tokens.ids[first:]
        targets = self._targets
        if targets == "completion_or_everything":
            targets = "everything" if content.num_prompt_messages is None else "completion"
        turns = [] if targets == "everything" else chosen_turns(content, targets)
        self._remarks.update(check_printed(self._renderer, content, render, turns))
        if targets == "everything":
            _check_no_weights(content)
            return ids, np.ones(len(ids), dtype=bool)
        spans = self._spans.of(content, render, turns)
        starts, ends = _starts_and_ends(tokens.offsets()[first:])
        _check_borders(render.text, starts, ends, [span for _, span in spans])
        return ids, _target_weights(starts, ends, [(content.weights[turn], span) for turn, span in spans])

    @cached_property
    def _renderer(self) -> ChatRenderer:
        template = resolve_chat_template(self._tokenizer, self._data.tokenizer_chat_template)
        return ChatRenderer(self._tokenizer, template)

    @cached_property
    def _passes_over_tools(self) -> bool:
        return self._data.tokenizer_chat_template is None and TOOL_TEMPLATE in templates_by_name(self._tokenizer)

    @cached_property
    def _spans(self) -> TurnSpans:
        return TurnSpans(self._renderer, self._tokenizer)

    def _tokenize(
        self, text: str, add_special_tokens: bool, is_control: Callable[[int, int], bool] | None
    ) -> TokenizedText:
        check_unicode(text)
        hopeless = self.max_len * self._longest_token * NORMALIZER_SHRINKS_BY_AT_MOST
        if len(text) > hopeless and self._data.overlong != "truncate":
            self.refuse_overlong(f"{len(text):,} characters")
        if is_control is None:
            return self._texts.tokenize(text, add_special_tokens)
        if not self._texts.is_plain:
            raise BadRow(
                "this tokenizer does more than its tokenizer.json says, so control tokens in the row cannot be read as "
                "text: choose --data.control_tokens refuse or keep"
            )
        return self._controls.tokenize(text, add_special_tokens, is_control)

    def _num_doubled_bos(self, ids: np.ndarray) -> int:
        """1 if the text itself began with the start token that the tokenizer adds."""
        bos = self._tokenizer.bos_token_id
        return int(bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos)

    def _num_doubled_eos(self, tokens: TokenizedText) -> int:
        """1 if the text itself ended with the end token that the tokenizer adds."""
        ends_twice = len(tokens.ids) > 1 and (tokens.ids[-2:] == self._eos_id).all()
        return int(ends_twice and not tokens.ending_behind(0)[-1])  # an added token has no characters

    def _fit(self, ids: np.ndarray, loss_mask: np.ndarray, row_weight: float) -> EncodedSample:
        """Applies the policy for samples longer than `max_len`; leaves out a row without a target token."""
        max_len = self.max_len
        cut = len(ids) > max_len
        if cut and self._data.overlong != "truncate":
            self.refuse_overlong(f"{len(ids):,} tokens")
        ids, loss_mask = ids[:max_len], loss_mask[:max_len].copy()
        loss_mask[-1:] = 0
        if not loss_mask.any():
            raise LeftOut(f"{NO_TARGETS} within max_len" if cut else NO_TARGETS)
        if row_weight != 1:
            loss_mask = loss_mask * np.float32(row_weight)
        return EncodedSample(ids, loss_mask, cut, row_weight, tuple(self._remarks))

    def encode_rendered(self, text: str) -> np.ndarray:
        """(L,) ids of what a chat template has printed, in which control tokens are such. Raises as `encode`."""
        ids = self._tokenize(text, add_special_tokens=False, is_control=None).ids
        ids = ids[self._num_doubled_bos(ids) :]
        if len(ids) > self.max_len:
            self.refuse_overlong(f"{len(ids):,} tokens")
        return ids

    def refuse_overlong(self, length: str) -> None:
        """By `overlong`, of a row that is not to be cut."""
        if self._data.overlong == "drop":
            raise LeftOut("longer than max_len")
        raise BadRow(
            f"{length} do not fit into --data.max_len {self.max_len}: raise it, "
            "or choose --data.overlong drop or truncate"
        )


def _always(start: int, end: int) -> bool:
    """The template has printed it: those of the row are broken."""
    return True


def _starts_and_ends(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places where the characters of each token begin and end, `(L,)` each.

    Some tokenizers trim white space out of their offsets: a token then begins where the one before it ended.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    return np.minimum(starts, np.append(0, ends[:-1])), ends


def _target_weights(starts: np.ndarray, ends: np.ndarray, spans: list[tuple[float, CharSpan]]) -> np.ndarray:
    """The weight of each token that stands for at least one character of a span; `(L,)` bool if all weigh 1.

    A token that ends one span and begins the next is of the next: of the first it holds white space alone.
    """
    is_weighted = any(weight != 1 for weight, _ in spans)
    targets = np.zeros(len(starts), dtype=np.float32 if is_weighted else bool)
    for weight, span in spans:
        targets[(starts < span.end) & (ends > span.start)] = weight
    return targets


def _check_no_weights(content: Conversation) -> None:
    """Raises BadRow if messages have weights that would not count."""
    for index, weight in enumerate(content.weights):
        if weight != 1:
            left_out = " (or train: false)" if weight == 0 else ""
            raise BadRow(
                f"message {index + 1} has the weight {weight:g}{left_out}, but with --data.targets everything the text "
                "is trained as a whole: give the row a weight, or choose other targets"
            )


def _check_borders(text: str, starts: np.ndarray, ends: np.ndarray, spans: list[CharSpan]) -> None:
    """A token over a span's border may hold white space of the other side, nothing else; raises BadRow."""
    for span in spans:
        for border in (span.start, span.end):
            for token in np.flatnonzero((starts < border) & (ends > border)):
                part = text[starts[token] : ends[token]]
                inside = border - starts[token]  # characters of the token before the border
                other_side = part[:inside] if border == span.start else part[inside:]
                if other_side.strip():
                    raise BadRow(
                        f"the token {part!r} reaches over the border of what the assistant says, "
                        "so its targets are not exact"
                    )


def _judging_next(targets: np.ndarray) -> np.ndarray:
    """Targets beside their tokens → the contract's loss mask, where index t judges token t+1."""
    mask = np.zeros(len(targets), dtype=np.uint8 if targets.dtype == bool else np.float32)
    mask[:-1] = targets[1:]
    return mask
