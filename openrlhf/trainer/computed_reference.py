"""Log-probs of a reference model, computed once for a data set and kept in a file that a kill does not spoil.

The file holds float64 numbers in the order of the rows, two a pair, and a checksum behind them when it is whole. Rows
are appended a window at a time, each window flushed; a run that goes on cuts what was not flushed whole. Whoever holds
the same weights, code, tokens and settings finds the same file.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tqdm import tqdm

from openrlhf.batching import MicroBatch, StepWindow, StepWindowLoader
from openrlhf.datasets.pair_numbers import PairsWithNumbers
from openrlhf.engine.abandoned_step import throw_away_gradients
from openrlhf.engine.parameters import is_partitioned
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.objectives import Scorer
from openrlhf.objectives.reference import REFERENCE_CHOSEN, REFERENCE_REJECTED, log_probs_of_sequences
from openrlhf.parallel.collectives import gather_objects
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.memory import MemoryBudget
from openrlhf.trainer.shortage import compute_together

_ROW_BYTES = 2 * 8


def with_log_probs(pairs: Any, log_probs: np.ndarray) -> PairsWithNumbers:
    """The data set of pairs, each with its log-probs by the reference. Args: log_probs: (rows, 2)."""
    return PairsWithNumbers(pairs, {REFERENCE_CHOSEN: log_probs[:, 0], REFERENCE_REJECTED: log_probs[:, 1]})


def compute_reference(
    load: Callable[[], Actor],
    loader: StepWindowLoader,
    strategy: DeepspeedStrategy,
    file: Path,
    memory_folder: Path | None = None,
) -> np.ndarray:
    """(rows, 2) float64 log-probs of the chosen and the rejected answer of each row. Every rank calls.

    Args:
        load: gives the model, frozen or not; it is not changed. Not called where the file is whole.
        loader: without shuffling, over a data set of pairs.
        file: on a disk that rank 0 sees; rows that it holds are not computed again.
        memory_folder: as of `MemoryBudget`.

    Raises UserError where the file cannot be written, and as `MemoryBudget` where memory runs out.
    """
    num_rows, control = len(loader.dataset), strategy.groups.control
    with _written_by_this_run_alone(file, strategy) as mine:
        begin = _rows_on_disk(mine, num_rows, loader.schedule.batch_size) if strategy.is_rank_0() else None
        begin = gather_objects(begin, control)[0]
        if begin < num_rows:
            memory = MemoryBudget(loader, None, None, lambda words, facts: strategy.print(words), memory_folder)
            _compute(load(), loader, strategy, mine, begin, memory)
        numbers = np.fromfile(mine, np.float64, 2 * num_rows) if strategy.is_rank_0() else None
    return gather_objects(numbers, control)[0].reshape(num_rows, 2)


@contextmanager
def _written_by_this_run_alone(file: Path, strategy: DeepspeedStrategy) -> Iterator[Path]:
    """The file; where another run writes it at this moment, one of this run's own: nobody waits for another run.

    Where nobody can say whether one does, it is a file of its own too, which takes the place of the other when done.
    """
    if not strategy.is_rank_0():
        yield file
        return
    with _telling_of(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_suffix(".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with _own(file) as own:
                yield own
        except OSError as error:  # Lustre without the option flock, and some other file systems of clusters
            strategy.print(
                f"{file.parent} cannot be locked ({error.strerror or error}): the reference's log-probs are kept there "
                "when all are computed, and a run that is killed before begins them anew."
            )
            with _own(file) as own:
                if file.is_file():
                    shutil.copyfile(file, own)
                yield own
                with _telling_of(file):
                    os.replace(own, file)
        else:
            yield file


@contextmanager
def _own(file: Path) -> Iterator[Path]:
    """A file beside it that nobody else knows, and that is gone behind the block."""
    own = file.with_name(f"{file.stem}-{uuid.uuid4().hex}{file.suffix}")
    try:
        yield own
    finally:
        own.unlink(missing_ok=True)


def _rows_on_disk(file: Path, num_rows: int, batch_size: int) -> int:
    """The rows that the file holds in whole windows, all of them where it is whole; it is cut behind them."""
    with _telling_of(file):
        content = file.read_bytes() if file.is_file() else b""
        size_bytes = num_rows * _ROW_BYTES
        if content[size_bytes:] == xxhash.xxh3_64_digest(content[:size_bytes]):
            return num_rows
        is_damaged = len(content) > size_bytes
        rows = 0 if is_damaged else min(len(content) // _ROW_BYTES, num_rows - 1) // batch_size * batch_size
        if content:
            os.truncate(file, rows * _ROW_BYTES)
        return rows


def _compute(
    model: Actor,
    loader: StepWindowLoader,
    strategy: DeepspeedStrategy,
    file: Path,
    begin: int,
    memory: MemoryBudget,
) -> None:
    """The rows from `begin` on, appended by rank 0, and the checksum."""
    was_training, is_writer = model.training, strategy.is_rank_0()
    model.eval()
    memory.read_note(strategy.groups.control)
    shown = tqdm(
        total=len(loader.dataset), initial=begin, desc="reference", disable=None if strategy.is_rank_0() else True
    )
    for window in loader.windows(begin, max_epochs=1):
        strategy.watchdog.note("computing the reference's log-probs")
        values = memory.compute(window, functools.partial(_of_window, model, strategy))
        if is_writer:
            _append(file, values.tobytes())
        shown.update(len(values))
    shown.close()
    model.train(was_training)
    if is_writer:
        _append(file, xxhash.xxh3_64_digest(file.read_bytes()))


def _append(file: Path, content: bytes) -> None:
    with _telling_of(file), file.open("ab") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())


@contextmanager
def _telling_of(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The reference's log-probs cannot be kept in {file.parent} ({error.strerror or error}): make room there, "
            "or choose another folder by --data.cache_dir."
        ) from error


def _of_window(model: Actor, strategy: DeepspeedStrategy, window: StepWindow) -> np.ndarray:
    """(rows of the window, 2), in the order of the rows; the same on every rank. Raises as `compute_together`."""
    mine: dict[int, list[float]] = {}

    def compute(number: int, micro_batch: MicroBatch) -> None:
        rows = window.rows_of_micro_batches[number] if micro_batch.unit_names else []
        of_pairs = log_probs_of_sequences(Scorer(model, micro_batch.to(strategy.device), strategy.groups))
        mine.update(zip(rows, of_pairs.view(-1, 2).double().tolist(), strict=True))

    compute_together(
        window,
        compute,
        strategy.groups,
        lambda: "the reference's pass",
        lambda: throw_away_gradients(model.engine),  # there are none; in parts (ZeRO-3) a broken pass holds weights
        any(map(is_partitioned, model.model.parameters())),
    )
    everyone: dict[int, list[float]] = {}
    for of_rank in gather_objects(mine, strategy.groups.control):
        everyone |= of_rank
    return np.array([everyone[row] for row in sorted(everyone)], dtype=np.float64)
