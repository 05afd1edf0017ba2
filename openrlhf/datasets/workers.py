"""Encoding blocks of rows, in this process or in several: always in order, never more than a few blocks ahead."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np

from openrlhf.config import DataConfig
from openrlhf.datasets.formats import reader_of
from openrlhf.datasets.formats.columns import row_weight
from openrlhf.datasets.prepared import SampleBatch
from openrlhf.datasets.samples import BadRow, EncodedSample, LeftOut, Pair
from openrlhf.datasets.sources.readers import SourceBlock
from openrlhf.datasets.tokenization.encoder import SampleEncoder
from openrlhf.datasets.tokenization.pairs import encode_pair
from openrlhf.errors import UserError
from openrlhf.processes import leave_with

ZERO_WEIGHT = "weight 0"
NUM_BLOCKS_INLINE = 2  # a small data set, and the first thousand rows of a big one, need no other process


@dataclass(frozen=True)
class EncodingTask:
    """One block to encode: of which table, in which format, and which of its rows, `(rows,)` bool."""

    table: int
    format_name: str
    block: SourceBlock
    taken: np.ndarray
    is_repeat: bool = False  # of a later pass: its rows were read before


@dataclass
class BlockResult:
    """The samples of a block's rows (None: they became none), remarks on them, and the reasons of the other rows."""

    table: int
    num_rows: int
    num_rows_taken: int
    samples: SampleBatch | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    bad_rows: list[tuple[int, str]] = field(default_factory=list)


Encode = Callable[[EncodingTask], BlockResult]


def encode_block(encoder: SampleEncoder, data: DataConfig, task: EncodingTask) -> BlockResult:
    """Rows of a block → encoded samples, with every failure kept in its place."""
    result = BlockResult(task.table, 0 if task.is_repeat else len(task.taken), int(task.taken.sum()))
    read = reader_of(task.format_name, data)
    samples: list[EncodedSample] = []
    numbers: list[int] = []
    for number, row in itertools.compress(zip(task.block.numbers, task.block.rows(), strict=True), task.taken):
        try:
            if isinstance(row, BadRow):
                raise row
            weight = row_weight(row, data)
            if weight == 0:
                raise LeftOut(ZERO_WEIGHT)
            content = read(row, data)
            if isinstance(content, Pair):
                samples += encode_pair(encoder, content, weight)
                numbers.append(number)
            else:
                samples.append(encoder.encode(content, weight))
            result.remarks.update(samples[-1].remarks)
            numbers.append(number)
        except BadRow as problem:
            result.bad_rows.append((number, str(problem)))
        except LeftOut as reason:
            result.left_out[str(reason)] += 1
    if samples:
        result.samples = SampleBatch.of(samples, task.table, numbers)
    return result


def encode_blocks(tasks: Iterator[EncodingTask], encode: Encode, num_processors: int) -> Iterator[BlockResult]:
    """Results in the order of the tasks. At most `num_processors` processes, none for a small data set."""
    yield from map(encode, itertools.islice(tasks, NUM_BLOCKS_INLINE))
    num_workers = min(num_processors, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if num_workers <= 1:
        yield from map(encode, tasks)
    elif (first := next(tasks, None)) is not None:
        yield from _encode_in_pool(itertools.chain([first], tasks), encode, num_workers)


def _encode_in_pool(tasks: Iterator[EncodingTask], encode: Encode, num_workers: int) -> Iterator[BlockResult]:
    context = multiprocessing.get_context("fork")  # a worker then starts at once and needs nothing sent
    ahead: deque[Future[BlockResult]] = deque()
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(encode, os.getpid())) as pool:
        try:
            for task in tasks:
                ahead.append(pool.submit(_encode_in_worker, task))
                if len(ahead) > 2 * num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "A process that tokenizes was ended from outside, mostly because memory ran out: lower "
                "--data.num_processors."
            ) from error
        finally:
            for future in ahead:
                future.cancel()


_worker_encode: Encode | None = None


def _start_worker(encode: Encode, parent: int) -> None:
    global _worker_encode
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once: amid a block no handler of the parent's is heard
    leave_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_encode = encode


def _encode_in_worker(task: EncodingTask) -> BlockResult:
    assert _worker_encode is not None
    return _worker_encode(task)
