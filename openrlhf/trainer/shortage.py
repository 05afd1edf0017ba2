"""Memory that runs out on some ranks: all ranks come to know of it, wherever they are, and give up together.

A rank that runs out of memory leaves the others in their collectives. Two ways lead out:

1. It has begun no collective in this micro-batch, as without ZeRO-3, rings and tensor parallelism. It computes a
   micro-batch without a unit in its place, and so each one that is left: the others find all their collectives.
2. Otherwise it cannot go on in the middle, and waits. If all ranks come to the same place (they have begun as many
   collectives), they go on from there. If not, nobody can: see `Apart`. A rank under ZeRO-3 always waits: what it holds
   of the others' weights decides which collectives come next, and that must stay alike. So does one that shares samples
   with others, by a ring or tensor parallelism: a micro-batch without a unit would send less than they expect.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from openrlhf.batching import MicroBatch, StepWindow
from openrlhf.engine.abandoned_step import collectives_begun
from openrlhf.errors import is_out_of_memory
from openrlhf.models.attention.ring import num_exchanges_begun
from openrlhf.parallel.collectives import any_rank_within, gather_objects
from openrlhf.parallel.groups import ProcessGroups

SECONDS_TO_FAIL_TOGETHER = 60.0
Work = TypeVar("Work")


@dataclass(frozen=True)
class Shortage:
    """A micro-batch for which a rank had no memory."""

    rank: int
    where: str
    unit_names: tuple[str, ...]
    num_tokens: int

    def __str__(self) -> str:
        names = ", ".join(self.unit_names[:8]) + (" …" if len(self.unit_names) > 8 else "")
        return f"{self.where}, rank {self.rank}: {self.num_tokens:,} tokens of {names or 'no sample'}"


class OutOfMemory(Exception):
    """Raised on all ranks alike: the step is given up, and nothing of it is left."""

    def __init__(self, shortages: tuple[Shortage, ...]):
        super().__init__("; ".join(map(str, shortages)))
        self.shortages = shortages


class Apart(OutOfMemory):
    """The ranks stand at unlike collectives, and cannot go on in these processes."""


def has_memory_for(work: Callable[[], None]) -> bool:
    """Does the work. False where memory ran out; what the work held is free then."""
    try:
        work()
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # behind the handler: the error's traceback held every tensor of the pass
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return False


def compute_together(
    window: StepWindow,
    compute: Callable[[int, MicroBatch], None],
    groups: ProcessGroups,
    where: Callable[[], str],
    throw_away: Callable[[], None] = lambda: None,
    shares_weights: bool = False,
) -> None:
    """Computes each micro-batch of a window, by its number. All ranks call.

    Args:
        where: the pass that was at work, for messages.
        throw_away: removes what the window's passes have left so far.
        shares_weights: by ZeRO-3.
    Raises OutOfMemory where memory ran out on any rank, and Apart.
    """
    shortage, is_apart = None, False
    shares_samples = groups.sequence_size * groups.tensor_size > 1
    for number, micro_batch in enumerate(window.micro_batches):
        if shortage is None:
            begun = _begun()
            if has_memory_for(lambda: compute(number, micro_batch)):  # noqa: B023  (called at once)
                continue
            shortage = Shortage(groups.rank, where(), micro_batch.unit_names, micro_batch.num_tokens)
            is_apart = shares_weights or shares_samples or _begun() != begun
            if is_apart:
                break
            throw_away()
        if not has_memory_for(lambda: compute(number, micro_batch.emptied())):  # noqa: B023
            is_apart = True
            break
    _agree(shortage, is_apart, groups, throw_away)


def _agree(shortage: Shortage | None, is_apart: bool, groups: ProcessGroups, throw_away: Callable[[], None]) -> None:
    seconds = SECONDS_TO_FAIL_TOGETHER if is_apart else None
    is_short = any_rank_within(shortage is not None, groups.control, seconds)
    if is_short is None:
        assert shortage is not None, "only a rank that has failed waits for so long"
        raise Apart((shortage,))
    if not is_short:
        return
    of_ranks = gather_objects((shortage, _begun()), groups.control)
    shortages = tuple(one for one, _ in of_ranks if one is not None)
    if not _is_one_place([begun for _, begun in of_ranks]):
        raise Apart(shortages)
    throw_away()
    raise OutOfMemory(shortages)


def _begun() -> dict[str, int]:
    """Of all that ranks do together; nccl does not number what two of them send each other."""
    return collectives_begun() | {"ring": num_exchanges_begun()}


def _is_one_place(begun_of_ranks: list[dict[str, int]]) -> bool:
    """Whether the ranks of each group have begun as many collectives in it."""
    numbers: dict[str, int] = {}
    return all(numbers.setdefault(name, number) == number for one in begun_of_ranks for name, number in one.items())
