"""transformers in this process. An answer that ends makes room: a batch is refilled, not waited for.

transformers' own continuous batching draws all rows from one generator, so that an answer would depend on its
neighbours; here each has random numbers of its own (`sampler.py`). A model whose cache is more than keys and values of
every token is run in plain batches by `model.generate`, with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from openrlhf.datasets.tokenizer import get_tokenizer
from openrlhf.engine.devices import give_back_memory, take_device
from openrlhf.engine.patches.float32_products import multiply_fast
from openrlhf.errors import UserError, is_out_of_memory
from openrlhf.models.limits import num_positions, padding_id
from openrlhf.models.loading import load_causal_lm, load_config, saved_dtype
from openrlhf.rejection.engines.encoding import PromptEncoder, PromptRefused, padded_left
from openrlhf.rejection.engines.engine import TOO_LONG, Engine, Generation, Refusal, Request, Sampling
from openrlhf.rejection.engines.row_cache import joined, kept_rows
from openrlhf.rejection.engines.sampler import draws_of, next_tokens

_POOL_BATCHES = 16  # requests that are sorted by length together, in batches
_REFILL_SHARE = 8  # a batch is refilled when one row in so many has ended


@dataclass
class _Row:
    """One answer on its way."""

    request: Request
    prompt_ids: list[int]
    max_new_tokens: int
    draws: np.ndarray
    answer_ids: list[int] = field(default_factory=list)
    has_ended: bool = False
    is_told: bool = False


class TransformersEngine(Engine):
    """Args: concurrency: rows of a batch; others as of `--model`, `--generate` and `--data`."""

    def __init__(
        self,
        name_or_path: str,
        sampling: Sampling,
        concurrency: int,
        param_dtype: str = "auto",
        template: str | None = None,
        trust_remote_code: bool = False,
    ):
        tokenizer = get_tokenizer(name_or_path, trust_remote_code=trust_remote_code)
        self._sampling, self._concurrency = sampling, concurrency
        self._model = load_for_answers(name_or_path, param_dtype, trust_remote_code)
        self._encoder = PromptEncoder(tokenizer, template, self._model.config)
        self._device = self._model.device
        ends = self._model.generation_config.eos_token_id
        self._end_ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._pad_id = padding_id(self._model.config, tokenizer.pad_token_id)
        self._max_positions = num_positions(self._model.config)
        self._refills = self._has_plain_cache()

    @torch.inference_mode()
    def answers(self, requests: Iterator[Request]) -> Iterator[Generation | Refusal]:
        run = self._refilled if self._refills else self._in_plain_batches
        try:
            yield from run(_Pool(requests, self._row_of, _POOL_BATCHES * self._concurrency))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"The memory of {self._device} does not hold --generate.concurrency {self._concurrency} answers at "
                "once: lower it, and start the same command again; all answers so far are kept."
            ) from error

    def close(self) -> None:
        del self._model
        give_back_memory()

    def _row_of(self, request: Request) -> _Row | Refusal:
        try:
            ids = self._encoder.encode(request.prompt)
        except PromptRefused as refused:
            return Refusal(request, refused.reason)
        limits = (self._sampling.max_prompt_len, self._max_positions and self._max_positions - 1)
        if any(limit is not None and len(ids) > limit for limit in limits) or not ids:
            return Refusal(request, TOO_LONG if ids else "the prompt has no token")
        room = self._sampling.max_new_tokens
        if self._max_positions is not None:
            room = min(room, self._max_positions - len(ids))
        return _Row(request, ids, room, draws_of(request.seed, room))

    def _refilled(self, pool: _Pool) -> Iterator[Generation | Refusal]:
        """One batch whose ended rows give way to new ones."""
        batch = _Batch([], DynamicCache(), torch.zeros(0, 0, dtype=torch.long, device=self._device))
        while batch.num_live or not pool.is_empty:
            num_free = self._concurrency - batch.num_live
            if num_free * _REFILL_SHARE >= self._concurrency and not pool.is_empty:
                new = pool.take(num_free)
                yield from pool.refused()
                batch = batch.without_ended().joined_with(self._started(new)) if new else batch
            elif batch.num_live * 2 <= len(batch.rows):
                batch = batch.without_ended()
            else:
                self._step(batch)
            yield from map(self._answer_of, batch.take_ended())

    def _started(self, rows: list[_Row]) -> _Batch:
        """A batch of new rows, each with its first token; a prompt that several share is computed once."""
        prompts = list({tuple(row.prompt_ids): None for row in rows})
        places = {prompt: place for place, prompt in enumerate(prompts)}
        ids, mask = (part.to(self._device) for part in padded_left(prompts, self._pad_id))
        cache = DynamicCache()
        logits = self._forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        of_row = torch.tensor([places[tuple(row.prompt_ids)] for row in rows], device=self._device)
        if len(rows) > len(prompts):
            cache, mask, logits = kept_rows(cache, of_row), mask[of_row], logits[of_row]
        self._take_tokens(rows, logits)
        return _Batch(rows, cache, mask)

    def _step(self, batch: _Batch) -> None:
        """One token more for each row; those of an ended row are thrown away."""
        last = torch.tensor([[row.answer_ids[-1]] for row in batch.rows], device=self._device)
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.rows), 1)], dim=1)
        positions = batch.mask.sum(dim=1, keepdim=True) - 1
        if self._max_positions is not None:
            positions = positions.clamp(max=self._max_positions - 1)  # an ended row may pass the end
        self._take_tokens(batch.rows, self._forward(last, batch.mask, positions, batch.cache))

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits behind the last token of each row, `(B, V)`."""
        few = {"logits_to_keep": 1} if self._model._supports_logits_to_keep() else {}
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **few
        )
        return output.logits[:, -1]

    def _take_tokens(self, rows: list[_Row], logits: torch.Tensor) -> None:
        numbers = [row.draws[min(len(row.answer_ids), row.max_new_tokens - 1)] for row in rows]
        draws = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
        tokens = next_tokens(logits, draws, self._sampling.temperature, self._sampling.top_p).tolist()
        for row, token in zip(rows, tokens, strict=True):
            if not row.has_ended:
                row.answer_ids.append(token)
                row.has_ended = token in self._end_ids or len(row.answer_ids) == row.max_new_tokens

    def _answer_of(self, row: _Row) -> Generation:
        is_stopped = row.answer_ids[-1] in self._end_ids
        ids = row.answer_ids[:-1] if is_stopped else row.answer_ids
        text = self._encoder.decode(row.prompt_ids, ids)
        return Generation(row.request, text, "stop" if is_stopped else "length", len(row.answer_ids))

    def _has_plain_cache(self) -> bool:
        """Whether the model keeps keys and values of every token, and nothing else: tried with one token."""
        cache = DynamicCache()
        one = torch.tensor([[self._pad_id]], device=self._device)
        try:
            with torch.inference_mode():
                self._forward(one, torch.ones_like(one), torch.zeros_like(one), cache)
        except Exception:  # a model with a cache of its own refuses this one in its own way
            return False
        layers = cache.layers
        return bool(layers) and all(type(layer) is DynamicLayer and layer.get_seq_length() == 1 for layer in layers)

    def _in_plain_batches(self, pool: _Pool) -> Iterator[Generation | Refusal]:
        """Batches by `model.generate`: its tokens are chosen by a processor that leaves one of them."""
        while rows := pool.take(self._concurrency):
            ids, mask = padded_left([row.prompt_ids for row in rows], self._pad_id)

            def choose(_: torch.Tensor, logits: torch.Tensor, rows: list[_Row] = rows) -> torch.Tensor:
                self._take_tokens(rows, logits)
                chosen = torch.tensor([[row.answer_ids[-1]] for row in rows], device=logits.device)
                return torch.full_like(logits, -torch.inf).scatter(1, chosen, 0.0)

            self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                do_sample=False,
                max_new_tokens=max(row.max_new_tokens for row in rows),
                eos_token_id=sorted(self._end_ids),
                pad_token_id=self._pad_id,
                logits_processor=[choose],
            )
            yield from map(self._answer_of, rows)
            yield from pool.refused()
        yield from pool.refused()


@dataclass
class _Batch:
    """Rows with what the model remembers of them; `mask` is `(B, S)`, 0 at padding, which stands on the left."""

    rows: list[_Row]
    cache: Any
    mask: torch.Tensor

    @property
    def num_live(self) -> int:
        return sum(not row.has_ended for row in self.rows)

    def take_ended(self) -> list[_Row]:
        """The rows that have ended since the last call."""
        ended = [row for row in self.rows if row.has_ended and not row.is_told]
        for row in ended:
            row.is_told = True
        return ended

    def without_ended(self) -> _Batch:
        places = [place for place, row in enumerate(self.rows) if not row.has_ended]
        kept = torch.tensor(places, dtype=torch.long, device=self.mask.device)
        mask = self.mask[kept]
        num_padding = int((mask.sum(dim=0) == 0).sum()) if places else mask.shape[1]
        return _Batch(
            [self.rows[place] for place in places], kept_rows(self.cache, kept, num_padding), mask[:, num_padding:]
        )

    def joined_with(self, other: _Batch) -> _Batch:
        if not self.rows:
            return other
        cache, mask = joined(self.cache, self.mask, other.cache, other.mask)
        return _Batch(self.rows + other.rows, cache, mask)


class _Pool:
    """The next requests, read ahead so that prompts of about one length are started together."""

    def __init__(self, requests: Iterator[Request], row_of: Any, size: int):
        self._requests, self._row_of, self._size = requests, row_of, size
        self._rows: list[_Row] = []
        self._refused: list[Refusal] = []
        self._is_exhausted = False

    def take(self, count: int) -> list[_Row]:
        """Up to so many rows, the longest prompts first."""
        if len(self._rows) < count and not self._is_exhausted:
            self._fill()
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken

    @property
    def is_empty(self) -> bool:
        return self._is_exhausted and not self._rows and not self._refused

    def refused(self) -> list[Refusal]:
        """The refusals since the last call."""
        refused, self._refused = self._refused, []
        return refused

    def _fill(self) -> None:
        while len(self._rows) < self._size:
            request = next(self._requests, None)
            if request is None:
                self._is_exhausted = True
                break
            row = self._row_of(request)
            if isinstance(row, Refusal):
                self._refused.append(row)
            else:
                self._rows.append(row)
        self._rows.sort(key=lambda row: len(row.prompt_ids), reverse=True)  # stable: samples of a prompt stay together


def load_for_answers(name_or_path: str, param_dtype: str, trust_remote_code: bool) -> Any:
    """The model on its device. `param_dtype` is as of `--generate.param_dtype`."""
    config = load_config(name_or_path, trust_remote_code)
    if param_dtype == "auto":
        param_dtype = saved_dtype(config, "bf16")
    device = take_device()
    model: Any = load_causal_lm(
        name_or_path, config=config, param_dtype=param_dtype, trust_remote_code=trust_remote_code
    )
    multiply_fast(model)
    return model.to(device).eval()
