"""Step windows of this rank, from a data set by the global order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from openrlhf.batching.distributed_sampler import DistributedSampler
from openrlhf.batching.layout import FixedSize, TokenBudget, Units
from openrlhf.batching.micro_batch import LossReduction, make_micro_batch, shared_tokens
from openrlhf.batching.rows import changes_rows, row_of, sequence_of
from openrlhf.batching.schedule import StepSchedule, WindowRows
from openrlhf.batching.unit import Unit, UnitLengths
from openrlhf.batching.window import StepWindow
from openrlhf.errors import UserError
from openrlhf.parallel.groups import ProcessGroups

WindowLayout = FixedSize | TokenBudget  # how a window is cut


class RowSource(Protocol):
    """A data set of rows `(input_ids, attention_mask, loss_mask)`, each (L,) or (1, L).

    It may also have `num_tokens` (the length of each row), `sample_name(row)` and `row_weight(row)`. A data set whose
    rows are several sequences has `unit(row)`, a Unit, and `unit_lengths(row)` in place of all these.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Any: ...


class Position(Protocol):
    """Where a run stands (`checkpoint.progress.TrainingProgress` is one)."""

    @property
    def optimizer_step(self) -> int: ...

    @property
    def consumed_samples(self) -> int: ...


@dataclass(frozen=True)
class MicroBatchFormat:
    """How samples become tensors; the same for training and evaluation."""

    packed: bool = False
    loss_reduction: LossReduction = "token"
    shares_prompts: bool = False  # in a pack, what the sequences of a unit begin with stands there once


class StepWindowLoader:
    """The windows of a run over `dataset`, laid out for one rank.

    As an iterable it yields the micro-batches of this rank as padded `(input_ids, attention_mask, loss_mask)`, each
    (B, S): what a loop of the user's own expects. `sampler.set_epoch(epoch, consumed_samples)` says of which epoch, and
    from where on; at first it is the whole first one. Every rank is given as many, as its collectives wait for the
    others': where the rows of a window do not go round, a rank without any is given the window's first row again, as
    `DistributedSampler` repeats rows. Windows repeat none.

    Args:
        collate_fn: rows → a batch. One that does more than pad (`pads_alone`) makes the rows of windows too.

    Attributes:
        layout, halvings: how the next window is cut, `layout.halved(halvings)`. They may be set between two windows,
            on all ranks alike; a window that was built before is then built again.
    """

    def __init__(
        self,
        dataset: RowSource,
        schedule: StepSchedule,
        layout: WindowLayout,
        micro_batch_format: MicroBatchFormat,
        groups: ProcessGroups,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ):
        if len(dataset) == 0:
            raise UserError("the data set holds no row to train on.")
        self.dataset = dataset
        self.schedule = schedule
        self.layout = layout
        self.halvings = 0
        self.micro_batch_format = micro_batch_format
        self.groups = groups
        self.collate_fn = collate_fn or _pad_rows
        self._changes_rows = changes_rows(collate_fn)
        self.sampler = DistributedSampler(
            dataset, groups.data_size, groups.data_rank, shuffle=schedule.shuffle, seed=schedule.seed
        )
        num_tokens = getattr(dataset, "num_tokens", None)  # a data set that knows them saves reading rows
        self._lengths_tokens = None if num_tokens is None else np.asarray(num_tokens)

    def windows(self, consumed_samples: int = 0, max_epochs: int | None = None) -> Iterator[StepWindow]:
        """This rank's step windows from `consumed_samples` on; the next ones are built beside the training."""
        rows_of_windows = self.schedule.windows(consumed_samples, max_epochs)
        for rows, cut, window in prefetched(map(self._built, rows_of_windows), num_ahead=2):
            yield window if cut == (self.layout, self.halvings) else self._built(rows)[-1]

    def _built(self, rows: WindowRows) -> tuple[WindowRows, tuple[WindowLayout, int], StepWindow]:
        """The rows, how they are cut, and their window."""
        cut = (self.layout, self.halvings)
        return rows, cut, self._window(rows, *cut)

    def _window(
        self, all_rows: WindowRows, layout: WindowLayout, halvings: int, without: frozenset[str] = frozenset()
    ) -> StepWindow:
        """Args: without: names of units that are left out."""
        kept = [row for row in all_rows.rows.tolist() if not without or self._unit(row).name not in without]
        window = replace(all_rows, rows=np.array(kept, dtype=np.int64))
        rows_of_micro_batches = self._rows_of_micro_batches(window, layout.halved(halvings)) if kept else [[]]
        micro_batches = []
        for rows in rows_of_micro_batches:
            units = [self._unit(row) for row in rows]
            micro_batch = make_micro_batch(units, **vars(self.micro_batch_format))
            micro_batches.append(micro_batch.share(self.groups.sequence_rank, self.groups.sequence_size))
        num_left_out = len(all_rows.rows) - len(kept) if self.groups.data_rank == 0 else 0
        again = partial(self._window, all_rows, layout)
        return StepWindow(window.epoch, micro_batches, rows_of_micro_batches, again, halvings, num_left_out)

    def windows_to_train(self, progress: Position, max_epochs: int) -> Iterator[StepWindow]:
        """The windows from where a run stands to the end of its last epoch."""
        return self.windows(progress.consumed_samples, max_epochs)

    @property
    def steps_per_epoch(self) -> int:
        return self.schedule.steps_per_epoch

    def num_steps_before(self, consumed_samples: int) -> int:
        """Optimizer steps that were done when `consumed_samples` units had been trained."""
        return self.schedule.num_steps_before(consumed_samples)

    def num_micro_batches(self, window_number: int) -> int:
        """Micro-batches that each rank computes for a window of the first epoch."""
        return len(self._rows_of_micro_batches(self.schedule.window(0, window_number)))

    def _rows_of_micro_batches(
        self, window: WindowRows, layout: WindowLayout | None = None, as_given: bool = False
    ) -> list[list[int]]:
        """The rows of each micro-batch of this rank. Args: as_given: as of `_lengths`."""
        layout, lengths = layout or self.layout, self._lengths(window.rows, as_given)
        of_rank = layout.of_rank(lengths, self.groups.data_size, self.groups.data_rank)
        return [window.rows[list(places)].tolist() for places in of_rank]

    def _lengths(self, rows: np.ndarray, as_given: bool) -> Units:
        """Args: as_given: those of the data set, for batches of which only the collate_fn knows what they hold."""
        if self.micro_batch_format.shares_prompts:
            return [_lengths_in_pack(self._unit(row)) for row in rows.tolist()]
        if hasattr(self.dataset, "unit_lengths"):
            return [self.dataset.unit_lengths(row) for row in rows.tolist()]
        if self._lengths_tokens is not None and (as_given or not self._changes_rows):
            return self._lengths_tokens[rows]
        return [(self._length(row, as_given),) for row in rows.tolist()]

    def _length(self, row: int, as_given: bool) -> int:
        item = self.dataset[row]
        if as_given and isinstance(item, tuple | list):
            return torch.as_tensor(item[0]).numel()
        input_ids, attention_mask, _ = self._parts(item, row)
        return int(attention_mask.bool().sum()) if self._changes_rows else input_ids.numel()

    def _unit(self, row: int) -> Unit:
        if hasattr(self.dataset, "unit"):
            self._check_units_alone()
            return self.dataset.unit(row)
        name, parts = self._name(row), self._parts(self.dataset[row], row)
        weight = self.dataset.row_weight(row) if hasattr(self.dataset, "row_weight") else 1.0
        return Unit((sequence_of(*parts, name),), name, weight)

    def _parts(self, item: Any, row: int) -> tuple[Tensor, Tensor, Tensor]:
        return row_of(self.collate_fn([item]) if self._changes_rows else item, self._name(row))

    def _name(self, row: int) -> str:
        return self.dataset.sample_name(row) if hasattr(self.dataset, "sample_name") else f"row {row}"

    def _check_units_alone(self) -> None:
        if self._changes_rows:
            raise UserError(
                f"the collate_fn given with a {type(self.dataset).__name__} would not be called: a training takes "
                f"what {type(self.dataset).__name__}.unit(row) gives. Change that in its place, and give no "
                "collate_fn, or mark one that only pads with openrlhf.batching.pads_alone."
            )

    def __iter__(self) -> Iterator[Any]:
        for window in self._windows_of_sampler():
            for rows in self._rows_of_micro_batches(window, as_given=True):
                yield self.collate_fn([self.dataset[row] for row in rows or window.rows[:1].tolist()])

    def __len__(self) -> int:
        """Micro-batches that an iteration has, on every rank alike."""
        return sum(len(self._rows_of_micro_batches(window, as_given=True)) for window in self._windows_of_sampler())

    def _windows_of_sampler(self) -> Iterator[WindowRows]:
        num_rows, epoch = self.schedule.num_rows, self.sampler.epoch
        consumed_samples = epoch * num_rows + min(self.sampler.consumed_samples, num_rows)
        return self.schedule.windows(consumed_samples, max_epochs=epoch + 1)


def _lengths_in_pack(unit: Unit) -> UnitLengths:
    """Tokens of each sequence, and of what they share: the tokens that are computed."""
    num_shared = shared_tokens(unit)
    return (num_shared, *(len(sequence.input_ids) - num_shared for sequence in unit.sequences))


def _pad_rows(rows: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of (L,) or (1, L) → (B, S) each, zeros on the right."""
    input_ids, attention_masks, loss_masks = (
        torch.nn.utils.rnn.pad_sequence([row[part].flatten() for row in rows], batch_first=True) for part in range(3)
    )
    return input_ids, attention_masks, loss_masks


# --- the next windows, built in a thread beside the training ------------------------------------------------------


Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterator[Item], num_ahead: int) -> Iterator[Item]:
    """The same items in the same order, at most `num_ahead` of them ready. An error in the thread is raised here."""
    ready: queue.Queue = queue.Queue(maxsize=num_ahead)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, stop), daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stop.set()


class _Raised:
    def __init__(self, error: BaseException):
        self.error = error


def _fill(items: Iterator[Item], ready: queue.Queue, stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(item, ready, stop):
                return
        _put(_END, ready, stop)
    except BaseException as error:
        _put(_Raised(error), ready, stop)


def _put(item: object, ready: queue.Queue, stop: threading.Event) -> bool:
    """False where the reader is gone: a thread must not wait for ever for one that left its loop."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False
