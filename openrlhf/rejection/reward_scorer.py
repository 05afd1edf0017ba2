"""A reward model at work: texts or conversations in, a number for each out; what is beside them changes none of them.

An answer is encoded as `train_rm` encodes it, one end token behind it, and its value is read at its last token.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from openrlhf.batching import TokenSequence, Unit, layout_of
from openrlhf.batching.micro_batch import make_micro_batch
from openrlhf.checkpoint.model_settings import text_around_answer, text_before_answer, text_behind_answer
from openrlhf.config import PairDataConfig
from openrlhf.datasets.formats.chat import conversation
from openrlhf.datasets.formats.plain import as_messages, in_template
from openrlhf.datasets.samples import BadRow, LeftOut, PlainText, RowContent
from openrlhf.datasets.tokenization.encoder import SampleEncoder
from openrlhf.datasets.tokenizer import get_tokenizer
from openrlhf.engine.devices import give_back_memory, usable_device_type
from openrlhf.errors import UserError
from openrlhf.models import RewardModel
from openrlhf.models.classifier import HEAD
from openrlhf.models.limits import num_positions, outside_vocabulary
from openrlhf.models.loading import load_config, saved_dtype
from openrlhf.models.reward_statistics import check_reward_statistics
from openrlhf.rejection.rewards.reward import Answered, Messages, RewardVerdict
from openrlhf.trainer.shortage import has_memory_for

log = logging.getLogger(__name__)

Item = str | tuple[str | Messages, str | Messages] | Answered | Messages
"""A whole text, in which control tokens are such; an answer to a prompt; or a whole conversation."""

_NO_LIMIT = 1 << 40


class RewardScorer:
    """Scores answers by the reward model in a folder, on a GPU where there is one. One call at a time.

    Attributes:
        max_len: tokens of the longest answer with its prompt; longer ones have no reward.
    """

    def __init__(
        self,
        folder: str,
        *,
        param_dtype: str = "auto",
        max_tokens: int = 16384,
        max_len: int | None = None,
        attn_implementation: str = "auto",
        head_prefix: str = HEAD,
        normalizes: bool = False,
        apply_chat_template: bool = False,
        trust_remote_code: bool = False,
    ):
        """
        Args:
            folder: of the reward model and its tokenizer, or a hub name.
            param_dtype: "bf16", "fp16" or "fp32"; "auto": the one that the model is saved in.
            max_tokens: computed at once; a longer answer is computed alone.
            max_len: None: as many tokens as the model has positions.
            head_prefix: as of `RewardModel`.
            normalizes: take mean and deviation of the rewards, which the model's config holds, off them.
            apply_chat_template: a prompt of text is the message of a user.

        Raises UserError where there is no reward model, or it has no tokenizer.
        """
        self._config = config = load_config(folder, trust_remote_code)
        dtype = saved_dtype(config, "fp32") if param_dtype == "auto" else param_dtype
        if normalizes:
            check_reward_statistics(config, folder)
        self._tokenizer = get_tokenizer(folder, trust_remote_code=trust_remote_code)
        self._model, self._is_packed = _ready(
            folder, dtype, attn_implementation, head_prefix=head_prefix, trust_remote_code=trust_remote_code
        )
        self._model.normalizes = normalizes
        self._max_tokens, self.max_len = max_tokens, _max_len(max_len, config)
        self._applies_template = apply_chat_template
        settings = PairDataConfig(max_len=self.max_len, overlong="error", apply_chat_template=apply_chat_template)
        self._encoder = _Encoder(self._tokenizer, settings)
        self._texts = _WholeTexts(self._tokenizer, self.max_len)

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """The reward of each item; None where `judged` says why there is none."""
        return [judged.value for judged in self.judged(items)]

    def judged(self, items: Sequence[Item]) -> list[RewardVerdict]:
        """The reward of each item, or why it has none: it is too long, or cannot be encoded or read."""
        encoded = [self.encoded(item) for item in items]
        rewards = iter(self.rewards_of([ids for ids in encoded if not isinstance(ids, str)]))
        return [RewardVerdict(None, ids) if isinstance(ids, str) else _finite(next(rewards)) for ids in encoded]

    def encoded(self, item: Item) -> np.ndarray | str:
        """(L,) token ids; or why there are none, as a sentence's end."""
        try:
            if isinstance(item, str):
                ids = self._texts.encode(item)
            else:
                ids = self._encoder.encode(self._content(item)).input_ids
        except (BadRow, LeftOut) as problem:
            return str(problem)
        return outside_vocabulary(self._config, ids) or ids

    @torch.no_grad()
    def rewards_of(self, token_ids: Sequence[np.ndarray]) -> list[float]:
        """The reward of each sequence (L,) of token ids."""
        lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
        rewards = np.zeros(len(lengths))
        if not len(lengths):
            return []
        budget = max(self._max_tokens, int(lengths.max()))
        for places in layout_of(1, budget, 1, self._is_packed).of_rank(lengths, 1, 0):
            if places:
                rewards[list(places)] = self._values_in_memory([token_ids[place] for place in places])
        return rewards.tolist()

    def _values_in_memory(self, token_ids: Sequence[np.ndarray]) -> list[float]:
        """Of one micro-batch; of its halves where memory runs out. Raises UserError where one sequence is too much."""
        values: list[float] = []
        if has_memory_for(lambda: values.extend(self._values(token_ids))):
            return values
        num_tokens, half = sum(map(len, token_ids)), len(token_ids) // 2
        if not half:
            raise UserError(
                f"The memory of {self._model.device} does not hold a sequence of {num_tokens:,} tokens: give a lower "
                "max_len, or a device with more memory."
            )
        self._max_tokens = min(self._max_tokens, num_tokens // 2)
        log.warning(
            "Memory ran out with %s tokens at once: %s at most from now on.", f"{num_tokens:,}", f"{num_tokens // 2:,}"
        )
        return self._values_in_memory(token_ids[:half]) + self._values_in_memory(token_ids[half:])

    def _values(self, token_ids: Sequence[np.ndarray]) -> list[float]:
        """Of one micro-batch."""
        tensors = [torch.from_numpy(ids.astype(np.int64)) for ids in token_ids]
        units = [Unit((TokenSequence(ids, torch.zeros_like(ids)),), "") for ids in tensors]
        batch = make_micro_batch(units, self._is_packed).to(self._model.device)
        values = self._model.score_sequences(
            last_index=batch.last_index,
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
        ).values
        return self._model.normal(values).tolist()

    def _content(self, item: tuple[str | Messages, str | Messages] | Answered | Messages) -> RowContent:
        """Raises BadRow where it is none."""
        if not isinstance(item, tuple):
            return conversation(item, {})
        prompt, answer, tools = Answered(*item)
        if isinstance(prompt, str) and isinstance(answer, str) and not self._applies_template:
            return in_template(prompt, answer, PairDataConfig())
        before = as_messages(prompt, "user", "prompt")
        messages = [*before, *as_messages(answer, "assistant", "response")]
        return conversation(messages, {"tools": tools}, num_prompt_messages=len(before))


class _Encoder(SampleEncoder):
    """Says of an item that is too long what the model is given."""

    def refuse_overlong(self, length: str) -> None:
        raise BadRow(f"it has {length}, more than fit into the {self.max_len:,} tokens that the model is given")


class _WholeTexts:
    """Texts that hold prompt and answer as a tokenizer or a chat template has printed them, as servers are given them.

    Padding may stand in front. An end token, padding and the end of a turn may stand behind the answer, or lack: one
    end stands there at last, as in the training. A text that the chat template has printed ends as that ends an answer.
    """

    def __init__(self, tokenizer: Any, max_len: int):
        self._encoder = _Encoder(tokenizer, PairDataConfig(max_len=max_len, overlong="error", control_tokens="keep"))
        self._bos = tokenizer.bos_token or ""
        self._end_of_turn = text_behind_answer(tokenizer)
        specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        printed = text_around_answer(tokenizer).removeprefix(self._bos)
        marks = {text_before_answer(tokenizer).strip(), *(token for token in specials if token in printed)}
        self._marks_of_template = tuple(filter(None, marks))
        borders = "|".join([*map(re.escape, specials), r"\s+"])
        self._begun_ends = [*accumulate(re.split(f"({borders})", self._end_of_turn))][::-1]  # the longest first
        fills = {tokenizer.eos_token, tokenizer.pad_token}
        self._padding = _any_of(fills - {tokenizer.bos_token})
        # Of texts read backwards: only so is the time linear where many ends stand in a text, and not behind it.
        self._end = _any_of({end[::-1] for end in {*fills, self._end_of_turn.strip()}}, before=r"\s*")

    def encode(self, text: str) -> np.ndarray:
        """(L,) token ids. Raises BadRow where there is nothing to encode, or too much."""
        text = self._without_ends(text)
        if not text:
            raise BadRow("it is empty")
        if not self._is_rendered(text):
            return self._encoder.encode(PlainText(text)).input_ids
        begun = next((end for end in self._begun_ends if text.endswith(end)), "")
        return self._encoder.encode_rendered(text.removesuffix(begun) + self._end_of_turn)

    def _is_rendered(self, text: str) -> bool:
        inside = text.removeprefix(self._bos)
        return any(mark in inside for mark in self._marks_of_template)

    def _without_ends(self, text: str) -> str:
        text = text[_length_of_run(self._padding, text) :]
        return text[: len(text) - _length_of_run(self._end, text[::-1])]


def _any_of(texts: set[str], before: str = "") -> re.Pattern[str]:
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    matches_nothing = "(?!)"
    return re.compile(f"{before}(?:{'|'.join(map(re.escape, longest_first)) or matches_nothing})")


def _length_of_run(pattern: re.Pattern[str], text: str) -> int:
    """Of the matches that follow one another from the beginning on."""
    length = 0
    while found := pattern.match(text, length):
        length = found.end()
    return length


def _ready(folder: str, dtype: str, attention: str, **settings: Any) -> tuple[RewardModel, bool]:
    """The model on its device, and whether it takes packs."""
    device = torch.device(usable_device_type())

    def load(is_packed: bool) -> RewardModel:
        model = RewardModel(folder, attention, dtype, packing_samples=is_packed, **settings)
        if model.head_begins:
            raise UserError(
                f"{folder} is no reward model: it has no head `{settings['head_prefix']}`. Give a folder that train_rm "
                "has written."
            )
        model.eval().to(device)
        model.check_layout(is_packed, None)
        return model

    with suppress(UserError):  # of packs, or one that is told again
        return load(is_packed=True), True
    give_back_memory()  # behind the handler: the error's traceback held the model
    return load(is_packed=False), False


def _finite(reward: float) -> RewardVerdict:
    return RewardVerdict(reward) if math.isfinite(reward) else RewardVerdict(None, f"its reward is {reward}")


def _max_len(asked: int | None, config: PretrainedConfig) -> int:
    """Raises UserError where the model has fewer positions."""
    positions = num_positions(config)
    if asked is not None and positions and asked > positions:
        raise UserError(f"max_len {asked:,} is more than the {positions:,} positions of the model: give {positions}.")
    return asked or positions or _NO_LIMIT
