"""Step windows of a DataLoader of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch

from openrlhf.batching.loader import MicroBatchFormat, Position
from openrlhf.batching.micro_batch import make_micro_batch, units_of_batch
from openrlhf.batching.rows import parts_of
from openrlhf.batching.unit import Unit
from openrlhf.batching.window import StepWindow
from openrlhf.parallel.collectives import max_over, sum_over
from openrlhf.parallel.groups import ProcessGroups


@dataclass(frozen=True)
class ForeignLoader:
    """A loader of this rank's batches `(input_ids, attention_mask, loss_mask)`, each (B, S) or (B, 1, S), in windows.

    Args:
        num_micro_batches: batches a window; an epoch's last window may have fewer.
        batch_size: samples an optimizer step, over all ranks.
        all_targets: every token is a target, whatever the loss mask says.
        look_at_step: is told, before the first step is trained, the samples of it over all ranks; an epoch that has
            no more than one step may end short, and is passed over.
    """

    batches: Iterable[Any]
    num_micro_batches: int
    batch_size: int
    micro_batch_format: MicroBatchFormat
    groups: ProcessGroups
    all_targets: bool = False
    look_at_step: Callable[[int], None] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """0 where the loader does not say how long it is."""
        return -(-_num_batches(self.batches) // self.num_micro_batches)

    def num_steps_before(self, consumed_samples: int) -> int:
        return consumed_samples // self.batch_size

    def windows_to_train(self, progress: Position, max_epochs: int) -> Iterator[StepWindow]:
        """The windows from where a run stands on: those before it are read and left out."""
        return self.windows(max_epochs, progress.optimizer_step, self.look_at_step)

    def windows(
        self, max_epochs: int, skip_windows: int = 0, look_at_step: Callable[[int], None] | None = None
    ) -> Iterator[StepWindow]:
        """Ranks may have unlike numbers of batches: the shorter ones compute without targets until all are through."""
        for epoch in range(max_epochs):
            _set_epoch(self.batches, epoch)
            of_rank = f"data rank {self.groups.data_rank}, " if self.groups.data_size > 1 else ""
            stream = iter(self.batches)
            if look_at_step is not None and epoch == 0:
                stream = self._looked_at(stream, look_at_step)
            while True:
                taken = list(islice(stream, self.num_micro_batches))
                num_taken_longest = int(max_over(torch.tensor(len(taken)), self.groups.control))
                if num_taken_longest == 0:
                    break
                if skip_windows > 0:
                    skip_windows -= 1
                    continue
                named = [
                    units_of_batch(one, f"{of_rank}micro-batch {place}", self.all_targets)
                    for place, one in enumerate(taken)
                ]
                yield self._window(epoch, [*named, *[[]] * (num_taken_longest - len(taken))])

    def _looked_at(self, stream: Iterator[Any], look_at_step: Callable[[int], None]) -> Iterator[Any]:
        """The same batches, once the first step's samples are told, unless it is the last of a rank."""
        read = list(islice(stream, self.num_micro_batches + 1))
        ends_here = len(read) <= self.num_micro_batches
        is_counted = not (self.groups.sequence_rank or self.groups.tensor_rank)  # these ranks have the same samples
        first_step = [parts_of(one, f"micro-batch {place}") for place, one in enumerate(read[: self.num_micro_batches])]
        num_here = sum(len(input_ids) for input_ids, *_ in first_step) if is_counted else 0
        num_samples, num_ends = sum_over(torch.tensor([num_here, int(ends_here)]), self.groups.control).tolist()
        if not num_ends:
            look_at_step(num_samples)
        return chain(read, stream)

    def _window(
        self, epoch: int, batches: list[list[Unit]], halvings: int = 0, without: frozenset[str] = frozenset()
    ) -> StepWindow:
        """Args: halvings, without: as of `StepWindow.relaid`. Each halving makes two of a batch, maybe empty ones."""
        kept = [[unit for unit in batch if unit.name not in without] for batch in batches]
        parts = [part for batch in kept for part in _parts(batch, 2**halvings)]
        made = (make_micro_batch(part, **vars(self.micro_batch_format)) for part in parts)
        micro_batches = [one.share(self.groups.sequence_rank, self.groups.sequence_size) for one in made]
        num_left_out = sum(map(len, batches)) - sum(map(len, kept))
        return StepWindow(epoch, micro_batches, [], partial(self._window, epoch, batches), halvings, num_left_out)


def _num_batches(batches: Any) -> int:
    """0 where they do not say: a DataLoader over an IterableDataset has a `__len__`, which raises TypeError."""
    try:
        return len(batches)
    except TypeError:
        return 0


def _parts(units: list[Unit], number: int) -> list[list[Unit]]:
    size = -(-len(units) // number)
    return [units[place * size : (place + 1) * size] for place in range(number)]


def _set_epoch(batches: Iterable[Any], epoch: int) -> None:
    """Lets a shuffling sampler (torch's DistributedSampler, say) draw another order each epoch."""
    set_epoch = getattr(getattr(batches, "sampler", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)
