"""Encoding blocks of rows, in this process or in several: always in order, never more than a few blocks ahead."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from openrlhf.config import DataConfig
from openrlhf.datasets.formats import FORMATS
from openrlhf.datasets.formats.columns import row_weight
from openrlhf.datasets.samples import BadRow, EncodedSample, LeftOut, Row, SampleBlock
from openrlhf.datasets.sources.blocks import SourceBlock
from openrlhf.datasets.tokenization.encoder import SampleEncoder

ZERO_WEIGHT = "weight 0"
NUM_BLOCKS_INLINE = 2  # a small data set, and the first thousand rows of a big one, need no other process


@dataclass(frozen=True)
class EncodingTask:
    """One block to encode: of which table, in which format, and which of its rows (None: all)."""

    table: int
    format_name: str
    block: SourceBlock
    taken: list[bool] | None = None


@dataclass
class BlockResult:
    """The samples of a block's rows, and the reasons of those that became none."""

    table: int
    num_rows: int = 0
    num_rows_taken: int = 0
    samples: SampleBlock = field(default_factory=lambda: SampleBlock.of([]))
    rows: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    bad_rows: list[tuple[int, str]] = field(default_factory=list)


class BlockEncoder:
    """Rows of a block → encoded samples, with every failure kept in its place."""

    def __init__(self, tokenizer: Any, data: DataConfig, pretrain_mode: bool):
        self._data = data
        self._encoder = SampleEncoder(tokenizer, data, pretrain_mode)

    def __call__(self, task: EncodingTask) -> BlockResult:
        result, samples = BlockResult(task.table), []
        read = FORMATS[task.format_name].read
        taken = task.taken or [True] * len(task.block.numbers)
        for number, row, is_taken in zip(task.block.numbers, task.block.rows(), taken, strict=True):
            result.num_rows += 1
            if is_taken:
                result.num_rows_taken += 1
                samples += self._encode_row(read, number, row, result)
        result.samples = SampleBlock.of(samples)
        return result

    def _encode_row(self, read: Callable, number: int, row: Row | BadRow, result: BlockResult) -> list[EncodedSample]:
        """The row's sample, if it becomes one; else the reason is kept in `result`."""
        try:
            if isinstance(row, BadRow):
                raise row
            weight = row_weight(row, self._data)
            if weight == 0:
                raise LeftOut(ZERO_WEIGHT)
            sample = self._encoder.encode(read(row, self._data), weight)
        except BadRow as problem:
            result.bad_rows.append((number, str(problem)))
        except LeftOut as reason:
            result.left_out[str(reason)] += 1
        else:
            result.rows.append(number)
            return [sample]
        return []


def encode_blocks(tasks: Iterator[EncodingTask], encode: BlockEncoder, num_processors: int) -> Iterator[BlockResult]:
    """Results in the order of the tasks. At most `num_processors` processes, none for a small data set."""
    for _ in range(NUM_BLOCKS_INLINE):
        task = next(tasks, None)
        if task is None:
            return
        yield encode(task)
    num_workers = min(num_processors, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if num_workers <= 1:
        yield from map(encode, tasks)
    else:
        yield from _encode_in_pool(tasks, encode, num_workers)


def _encode_in_pool(tasks: Iterator[EncodingTask], encode: BlockEncoder, num_workers: int) -> Iterator[BlockResult]:
    ahead: deque[Future[BlockResult]] = deque()
    with _pool(num_workers, encode) as pool:
        try:
            for task in tasks:
                ahead.append(pool.submit(_encode_in_worker, task))
                if len(ahead) > 2 * num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _pool(num_workers: int, encode: BlockEncoder) -> ProcessPoolExecutor:
    """Forked where that is possible: a worker then starts at once and needs nothing sent."""
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(encode,))


_worker_encoder: BlockEncoder | None = None


def _start_worker(encode: BlockEncoder) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_encoder = encode


def _encode_in_worker(task: EncodingTask) -> BlockResult:
    assert _worker_encoder is not None
    return _worker_encoder(task)
