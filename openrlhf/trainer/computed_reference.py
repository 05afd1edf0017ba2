"""Log-probs of a reference model, computed once for a data set and kept in a file.

The file holds float64 numbers in the order of the rows, two a pair, and a checksum behind them. It is put in place
whole, and the first one stays: all who hold the same weights, code, tokens and settings train with the same numbers.
Until then each process keeps its rows in a journal beside it, each row with a checksum, and the next one takes them
over. Nothing is locked, and a run trains with what it has computed, not with what became of it on disk.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from tqdm import tqdm

from openrlhf.atomic_file import remove_leftovers, replace_file
from openrlhf.batching import MicroBatch, StepWindow, StepWindowLoader
from openrlhf.datasets.cache import MAKING
from openrlhf.datasets.pair_numbers import PairsWithNumbers
from openrlhf.engine.abandoned_step import throw_away_gradients
from openrlhf.engine.parameters import is_partitioned
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.objectives import Scorer
from openrlhf.objectives.reference import REFERENCE_CHOSEN, REFERENCE_REJECTED, log_probs_of_sequences
from openrlhf.parallel.collectives import gather_objects
from openrlhf.processes import has_ended, is_near, this_process
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.memory import MemoryBudget
from openrlhf.trainer.shortage import compute_together

_JOURNAL_ROW = np.dtype([("log_probs", np.float64, 2), ("checksum", np.uint64)])
_SECONDS_UNSEEN = 86_400.0  # after which a journal of a process on another machine, unchanged, is nobody's


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
        load: gives the model, frozen or not; it is not changed. Not called where all rows are on disk.
        loader: without shuffling, over a data set of pairs.
        file: on a disk that rank 0 sees; rows that it or a journal holds are not computed again.
        memory_folder: as of `MemoryBudget`.

    Raises UserError where the file cannot be written, and as `MemoryBudget` where memory runs out.
    """
    num_rows, control, say = len(loader.dataset), strategy.groups.control, strategy.print
    rows = _rows_on_disk(file, num_rows, loader.schedule.batch_size, say) if strategy.is_rank_0() else None
    begin = gather_objects(None if rows is None else len(rows), control)[0]
    if begin < num_rows:
        memory = MemoryBudget(loader, None, None, lambda words, facts: strategy.print(words), memory_folder)
        journal = None if rows is None else _Journal(file, rows)
        computed = _compute(load(), loader, strategy, journal, begin, memory)
        if rows is not None and journal is not None:
            rows = _first_in_place(file, np.concatenate([rows, *computed]), say)
            journal.remove()
    return gather_objects(rows, control)[0]


def _rows_on_disk(file: Path, num_rows: int, batch_size: int, say: Callable[[str], None]) -> np.ndarray:
    """(rows, 2): all of the file. Where it is not whole, those of the longest journal, in whole windows.

    The last window is computed in any case: whoever does so puts the file in place.
    """
    with _telling_of(file):
        rows = _whole_file(file, num_rows)
        if rows is not None:
            remove_leftovers(file)
            _remove_journals_of_ended(file)
            return rows
        if file.exists():
            say(f"{file} is damaged, or only a part: the reference's log-probs are computed anew.")
        rows = max((_rows_of_journal(path, say) for path in _journals(file)), key=len, default=np.empty((0, 2)))
        return rows[: min(len(rows), num_rows - 1) // batch_size * batch_size]


def _whole_file(file: Path, num_rows: int) -> np.ndarray | None:
    """Its rows; None where it is not there or not whole."""
    content, size_bytes = file.read_bytes() if file.is_file() else b"", num_rows * 2 * 8
    if content[size_bytes:] != xxhash.xxh3_64_digest(content[:size_bytes]):
        return None
    return np.frombuffer(content[:size_bytes], np.float64).reshape(num_rows, 2)


def _first_in_place(file: Path, rows: np.ndarray, say: Callable[[str], None]) -> np.ndarray:
    """The rows, put in place; those of another run that was done before: it may be training with them already."""
    with _telling_of(file):
        found = _whole_file(file, len(rows))
        if found is not None:
            say(f"Another run has computed {file} meanwhile: its log-probs are taken.")
            return found
        content = rows.tobytes()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content + xxhash.xxh3_64_digest(content))
    return rows


class _Journal:
    """The rows of this process on their way, each with a checksum; an error or a kill leaves them to the next run."""

    def __init__(self, file: Path, rows: np.ndarray):
        """Args: rows: those before the ones that are computed."""
        self._file, self._num_rows = file, 0
        with _telling_of(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._target = file.with_name(f"{file.stem}{MAKING}{this_process()}").open("wb")
        self.append(rows)
        _remove_journals_of_ended(file)

    def append(self, rows: np.ndarray) -> None:
        """They are on the disk when this returns."""
        with _telling_of(self._file):
            _append(self._target, _with_checksums(rows, self._num_rows).tobytes())
        self._num_rows += len(rows)

    def remove(self) -> None:
        """What it holds is in the file."""
        with suppress(OSError):  # a disk that is away for a moment costs room alone
            self._target.close()
            Path(self._target.name).unlink()


def _append(target: BinaryIO, content: bytes) -> None:
    target.write(content)
    target.flush()
    os.fsync(target.fileno())


def _with_checksums(rows: np.ndarray, first: int = 0) -> np.ndarray:
    """As a journal holds them. Args: first: the number of the first one, which its checksum knows."""
    of_journal = np.empty(len(rows), _JOURNAL_ROW)
    of_journal["log_probs"] = rows
    of_journal["checksum"] = [xxhash.xxh3_64_intdigest(row.tobytes(), number) for number, row in enumerate(rows, first)]
    return of_journal


def _journals(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.stem}{MAKING}*"))


def _rows_of_journal(journal: Path, say: Callable[[str], None]) -> np.ndarray:
    """(rows, 2): those before the first one that is damaged; a kill leaves at most a part of a row behind them."""
    content = b""
    with suppress(FileNotFoundError, PermissionError):  # its process has put the file in place; another user's
        content = journal.read_bytes()
    of_journal = np.frombuffer(content, _JOURNAL_ROW, len(content) // _JOURNAL_ROW.itemsize)
    rows = of_journal["log_probs"]
    damaged = np.flatnonzero(of_journal["checksum"] != _with_checksums(rows)["checksum"])
    if not len(damaged):
        return rows
    say(f"{journal} is damaged: the reference's log-probs are computed anew from row {damaged[0] + 1} on.")
    return rows[: damaged[0]]


def _remove_journals_of_ended(file: Path) -> None:
    """What those of ended processes hold is in the file, or in this process's journal."""
    for journal in _journals(file):
        maker = journal.name.rpartition(MAKING)[2]
        with suppress(OSError):  # another process removes it too, or it is another user's
            if has_ended(maker) if is_near(maker) else time.time() - journal.stat().st_mtime > _SECONDS_UNSEEN:
                journal.unlink()


def _compute(
    model: Actor,
    loader: StepWindowLoader,
    strategy: DeepspeedStrategy,
    journal: _Journal | None,
    begin: int,
    memory: MemoryBudget,
) -> list[np.ndarray]:
    """The rows from `begin` on, a window at a time, the same on every rank. Args: journal: of rank 0."""
    was_training, computed = model.training, list[np.ndarray]()
    model.eval()
    memory.read_note(strategy.groups.control)
    shown = tqdm(
        total=len(loader.dataset), initial=begin, desc="reference", disable=None if strategy.is_rank_0() else True
    )
    for window in loader.windows(begin, max_epochs=1):
        strategy.watchdog.note("computing the reference's log-probs")
        computed.append(memory.compute(window, functools.partial(_of_window, model, strategy)))
        if journal is not None:
            journal.append(computed[-1])
        shown.update(len(computed[-1]))
    shown.close()
    model.train(was_training)
    return computed


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
