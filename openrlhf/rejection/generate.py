"""The first stage: a model's answers to prompts, several to each, kept as they come.

    from openrlhf.rejection.generate import generate
    stats = generate(config)

What is there is never asked for again, whichever engine goes on and with however many ranks. Ranks share the prompts
and need not talk: each knows its own by their order, and appends to a shard of its own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from openrlhf.config import GenerateConfig
from openrlhf.config.disk import local_path, parts_of
from openrlhf.errors import UserError
from openrlhf.parallel.ray_workers import check_is_here, check_ray, on_ray, range_size
from openrlhf.rejection.asking import Progress, ask
from openrlhf.rejection.engines.engine import Engine, Request, Sampling
from openrlhf.rejection.full_disk import keeps_on_a_full_disk
from openrlhf.rejection.generation_report import write_generation_report
from openrlhf.rejection.model_fingerprint import model_fingerprint
from openrlhf.rejection.prompts import Prompt, Prompts, seed_of, template_file
from openrlhf.rejection.range_shards import name_of_range, write_shard
from openrlhf.rejection.records import (
    LEFT_OUT,
    Identity,
    Row,
    RowWriter,
    StoredRows,
    differences,
    finish,
    grow_output,
    is_finished,
    open_output,
    read_manifest,
    read_stats,
    settings_of,
)

_MOST_ANSWERS_A_RANGE = 16384  # on Ray: what a lost worker may cost


@keeps_on_a_full_disk
def generate(config: GenerateConfig, engine: Engine | None = None) -> dict[str, Any]:
    """Asks for every answer that `generate.output` lacks, and returns the content of its `stats.json`.

    Under torchrun each rank asks for its share; the last to end writes `stats.json`, and the others return it without
    the rest, as far as it is known.

    Args: engine: in the place of the one that `generate.engine` names; it is not closed.

    Raises UserError where the output is another run's, where prompts cannot be read, where the engine cannot go on, or
    where the disk is full.
    """
    if config.generate.runner == "ray":
        check_ray("--generate.runner")
    output = local_path(config.generate.output)
    prompts = Prompts(config.data)
    identity = generation_identity(config, prompts)
    if more := grow_output(output, identity, "generate.n"):
        _tell(f"{output}: {more}. The answers that are there stay, and the others are asked for")
    open_output(output, identity, "--generate.output")
    if is_finished(output):
        _tell(f"{output} is finished: nothing is left to do")
        return read_stats(output)
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = f"rank-{rank}"
    with RowWriter(output, name) as rows, RowWriter(output, name, LEFT_OUT) as left_out:
        # Read now that no other process adds to it: what one has added is not asked for again.
        mine = _Share(prompts, _Known.of(output), config, rank, num_ranks)
        if mine.num_missing and config.generate.runner == "ray":
            answer = functools.partial(_answer_ranges, config, output, identity.weights)
            _ask_on_ray(answer, mine, takes_gpu=config.generate.engine != "openai")
        elif mine.num_missing:
            made = contextlib.closing(make_engine(config)) if engine is None else contextlib.nullcontext(engine)
            with made as asked, Progress(mine.num_missing) as progress:
                ask(asked, mine, rows.append, left_out.append, identity.weights, progress)
    return _finished_by_the_last(output, prompts, config, identity)


def generation_identity(config: GenerateConfig, prompts: Prompts) -> Identity:
    """What answers depend on: settings, weights, prompts."""
    weights = model_fingerprint(config.model.model_name_or_path)
    inputs = {"data.dataset": prompts.content_hash(), **template_file(config.data)}
    return Identity("generate", settings_of(config), weights, inputs)


def make_engine(config: GenerateConfig) -> Engine:
    """The engine that `generate.engine` names. Raises UserError where it, or its model, is not there."""
    given, name = config.generate, config.model.model_name_or_path
    sampling = Sampling(given.temperature, given.top_p, given.max_new_tokens, given.max_prompt_len)
    if given.engine == "openai":
        from openrlhf.rejection.engines.openai_engine import OpenAIEngine

        bounds = given.concurrency, given.timeout_seconds, given.max_retries
        return OpenAIEngine(parts_of(given.url), given.served_name or name, sampling, *bounds)
    if given.engine == "vllm":
        from openrlhf.rejection.engines.vllm_engine import VLLMEngine as InProcess
    else:
        from openrlhf.rejection.engines.transformers_engine import TransformersEngine as InProcess  # type: ignore
    return InProcess(
        name,
        sampling,
        given.concurrency,
        param_dtype=given.param_dtype,
        template=config.data.tokenizer_chat_template,
        trust_remote_code=config.model.trust_remote_code,
    )


@dataclass
class _Known:
    """What an output holds.

    Attributes:
        answered: by prompt, the numbers of its answers as bits.
        left_out: by prompt, why it has none.
        num_counted: answers whose tokens were counted; a server may not say.
    """

    answered: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    left_out: dict[str, str] = field(default_factory=dict)
    num_tokens: int = 0
    num_counted: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    num_torn_lines: int = 0

    @classmethod
    def of(cls, output: Path) -> _Known:
        known, rows = cls(), StoredRows(output)
        for row in rows:
            try:
                known._add(row)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{output} holds a row that generate has not written (row {rows.num_rows:,} of its files in their "
                    f"order; {type(error).__name__}: {error}): remove that line, or give another folder."
                ) from error
        known.num_torn_lines = rows.num_torn
        for row in StoredRows(output, LEFT_OUT):
            known.left_out[row["prompt_id"]] = row["reason"]
        return known

    def _add(self, row: Row) -> None:
        self.answered[row["prompt_id"]] |= 1 << row["sample_index"]
        self.num_tokens += row["num_tokens"] or 0
        self.num_counted += row["num_tokens"] is not None
        self.finish_reasons[row["finish_reason"]] += 1

    def missing(self, prompt: Prompt, n: int) -> list[int]:
        """The numbers of the answers that are to be asked for."""
        if prompt.prompt_id in self.left_out:
            return []
        answered = self.answered.get(prompt.prompt_id, 0)
        return [index for index in range(n) if not answered >> index & 1]

    def statistics(self) -> dict[str, Any]:
        """The content of `stats.json`."""
        return {
            "num_prompts": len(self.answered),
            "num_generations": self.finish_reasons.total(),
            "num_tokens": self.num_tokens,
            "mean_tokens": self.num_tokens / self.num_counted if self.num_counted else None,
            "finish_reasons": dict(self.finish_reasons),
            "left_out": dict(Counter(reason.partition(": ")[0] for reason in self.left_out.values())),
            "num_torn_lines": self.num_torn_lines,
        }


class _Share:
    """What this rank is to ask for; each iteration gives all of it."""

    def __init__(self, prompts: Prompts, known: _Known, config: GenerateConfig, rank: int, num_ranks: int):
        self._prompts, self._known = prompts, known
        self._n, self._seed = config.generate.n, config.generate.seed
        self._concurrency = config.generate.concurrency
        self._rank, self._num_ranks = rank, num_ranks
        self.num_missing = self._num_asked = 0
        for prompt in self._mine():
            self.num_missing += len(known.missing(prompt, self._n))
            self._num_asked += self._n

    def __iter__(self) -> Iterator[Request]:
        return (request for prompt in self._mine() for request in self._missing(prompt))

    def ranges(self) -> Iterator[list[Request]]:
        """The same, in ranges of prompts, which do not depend on what is missing."""
        num_answers = range_size(self._num_asked, 4 * self._concurrency, _MOST_ANSWERS_A_RANGE)
        prompts = self._mine()
        while taken := list(itertools.islice(prompts, -(-num_answers // self._n))):
            if missing := [request for prompt in taken for request in self._missing(prompt)]:
                yield missing

    def _missing(self, prompt: Prompt) -> Iterator[Request]:
        for index in self._known.missing(prompt, self._n):
            yield Request(prompt, index, seed_of(self._seed, prompt.prompt_id, index))

    def _mine(self) -> Iterator[Prompt]:
        return itertools.islice(self._prompts, self._rank, None, self._num_ranks)


_Answer = Callable[[list[Request]], tuple[Path, int, int]]
"""Requests → their shard, how many they were, and the tokens of their answers."""


def _ask_on_ray(make_work: Callable[[], _Answer], share: _Share, takes_gpu: bool) -> None:
    """Workers leave a shard for each range of prompts."""
    with Progress(share.num_missing) as progress:
        for _, (shard, num_asked, num_tokens) in on_ray(make_work, share.ranges(), takes_gpu=takes_gpu):
            check_is_here(shard)
            progress.add(num_tokens, num_asked)


def _answer_ranges(config: GenerateConfig, output: Path, weights: str | None) -> _Answer:
    """In a worker: it makes its engine once. A range leaves one shard, its rows in the order of the prompts."""
    engine = make_engine(config)

    def answer(requests: list[Request]) -> tuple[Path, int, int]:
        rows: list[Row] = []
        left_out: list[Row] = []
        order = {(one.prompt.prompt_id, one.sample_index): place for place, one in enumerate(requests)}

        def leave(name: str) -> Path:
            if left_out:
                write_shard(output, name, sorted(left_out, key=itemgetter("prompt_id")), LEFT_OUT)
            return write_shard(output, name, sorted(rows, key=lambda row: order[_key(row)]))

        try:
            ask(engine, requests, rows.append, left_out.append, weights)
        except UserError:  # what has come is kept, under a name that is not the whole range's
            leave(name_of_range([*map(_key, rows), *((row["prompt_id"],) for row in left_out)]))
            raise
        return leave(name_of_range(order)), len(requests), sum(row["num_tokens"] or 0 for row in rows)

    return answer


def _key(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["prompt_id"], row["sample_index"]


def _finished_by_the_last(output: Path, prompts: Prompts, config: GenerateConfig, identity: Identity) -> dict[str, Any]:
    """Counts what is there; where nothing is missing any more, the stage is finished."""
    if (manifest := read_manifest(output)) is None:
        raise UserError(f"{output}: its manifest was removed while generate was at work: give another folder.")
    if changes := differences(manifest, identity):
        _tell(f"{output}: another command has asked for more meanwhile ({'; '.join(changes)}): start that again")
        return {}
    known = _Known.of(output)
    if num_missing := sum(len(known.missing(prompt, config.generate.n)) for prompt in prompts):
        return _not_finished(output, num_missing)
    stats = known.statistics()
    subtitle = f"{output} by {config.model.model_name_or_path}"
    write_generation_report(output, stats, known.answered, subtitle)
    finish(output, stats)
    tokens = "" if stats["mean_tokens"] is None else f", {stats['mean_tokens']:,.0f} tokens a piece"
    reasons = "".join(f"; left out, {reason}: {count:,}" for reason, count in stats["left_out"].items())
    _tell(f"{output}: {stats['num_generations']:,} answers to {stats['num_prompts']:,} prompts{tokens}{reasons}")
    return stats


def _not_finished(output: Path, num_missing: int) -> dict[str, Any]:
    """Another rank has not ended yet. Raises UserError where there is none."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        raise UserError(
            f"{output}: {num_missing:,} answers are missing, though all were there or have been asked for: its files "
            "were changed while generate was at work. Start the same command again: it asks for these."
        )
    again = "Where none of them is at work any more, start the same command again"
    _tell(f"{output}: {num_missing:,} answers are missing yet, which other ranks ask for. {again}")
    return {}


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
