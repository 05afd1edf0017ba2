"""The loader's windows: as many micro-batches on every rank, and together the samples of the schedule."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from openrlhf.batching import (
    FixedSize,
    ForeignLoader,
    MicroBatchFormat,
    StepSchedule,
    StepWindowLoader,
    TokenBudget,
)
from openrlhf.parallel.groups import ProcessGroups, alone

FORMAT = MicroBatchFormat(pad_token_id=0)
ONE_BY_ONE = FixedSize(1)


def rows(number: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rows of unlike lengths, of which the first token tells the number."""
    ids = [torch.full((3 + place % 4,), 10 + place) for place in range(number)]
    return [(one, torch.ones_like(one), torch.ones_like(one)) for one in ids]


def rank_of(data_rank: int, data_size: int) -> ProcessGroups:
    return replace(alone(), rank=data_rank, world_size=data_size, data_rank=data_rank, data_size=data_size)


def loader(number: int, groups: ProcessGroups, layout=ONE_BY_ONE) -> StepWindowLoader:
    return StepWindowLoader(rows(number), StepSchedule(number, 4, seed=3), layout, FORMAT, groups)


def test_a_rank_without_samples_computes_as_many_micro_batches():
    for layout in (ONE_BY_ONE, TokenBudget(8, packed=False)):
        of_ranks = [list(loader(9, rank_of(rank, 2), layout).windows(max_epochs=1)) for rank in (0, 1)]
        assert [len(w.micro_batches) for w in of_ranks[0]] == [len(w.micro_batches) for w in of_ranks[1]]
    assert of_ranks[1][-1].micro_batches[0].num_tokens == 0, "the last window's one row is on the other rank"


def test_ranks_share_the_samples_of_a_step():
    whole = [sorted(window.unit_names) for window in loader(9, alone()).windows(max_epochs=2)]
    for size in (2, 3):
        of_ranks = [list(loader(9, rank_of(rank, size)).windows(max_epochs=2)) for rank in range(size)]
        steps = zip(*of_ranks, strict=True)
        shared = [sorted(name for window in step for name in window.unit_names) for step in steps]
        assert shared == whole


def test_a_foreign_loader_goes_on_behind_the_windows_that_were_trained():
    batches = [tuple(part[None] for part in row) for row in rows(5)]

    def first_tokens(skip_windows: int) -> list[list[int]]:
        windows = ForeignLoader(batches, 2, 2, FORMAT, alone()).windows(max_epochs=2, skip_windows=skip_windows)
        return [[int(one.input_ids[0, 0]) for one in window.micro_batches] for window in windows]

    assert first_tokens(0) == [[10, 11], [12, 13], [14]] * 2
    assert first_tokens(4) == [[12, 13], [14]]


def test_a_layout_that_is_set_between_two_windows_holds_for_the_next():
    made = loader(8, alone(), FixedSize(4))
    windows = made.windows(max_epochs=3)
    numbers = [len(next(windows).micro_batches), len(next(windows).micro_batches)]
    time.sleep(0.5)  # in which the next ones are built
    for made.layout, made.halvings in ((FixedSize(2), 0), (FixedSize(4), 2), (TokenBudget(40, packed=False), 0)):
        numbers.append(len(next(windows).micro_batches))
    assert numbers == [1, 1, 2, 4, 1]


def test_a_window_cut_smaller_holds_the_same_units():
    for layout in (FixedSize(4), TokenBudget(24, packed=False), TokenBudget(24, packed=True)):
        (window,) = loader(4, alone(), layout).windows(max_epochs=1)
        for halvings in range(1, 6):
            smaller = window.relaid(halvings, frozenset())
            assert sorted(smaller.unit_names) == sorted(window.unit_names)
            assert smaller.halvings == halvings
        assert [len(one.unit_names) for one in smaller.micro_batches] == [1] * 4


def test_ranks_cut_a_window_smaller_alike():
    layout = TokenBudget(12, packed=False)
    of_ranks = [next(loader(9, rank_of(rank, 2), layout).windows(max_epochs=1)) for rank in (0, 1)]
    for halvings in range(5):
        smaller = [window.relaid(halvings, frozenset()) for window in of_ranks]
        assert len(smaller[0].micro_batches) == len(smaller[1].micro_batches)


def test_a_unit_that_is_left_out_counts_as_one_of_the_window():
    for window in (
        next(loader(4, alone(), FixedSize(2)).windows(max_epochs=1)),
        next(ForeignLoader([one_batch()], 1, 4, FORMAT, alone()).windows(max_epochs=1)),
    ):
        smaller = window.relaid(1, frozenset(window.unit_names[:1]))
        assert sorted(smaller.unit_names) == sorted(window.unit_names[1:])
        assert smaller.count(alone(), lambda one: one.num_target_tokens).num_units_global == 4


def one_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.arange(20).view(4, 5)
    return ids, torch.ones_like(ids), torch.ones_like(ids)


def test_a_window_without_its_only_unit_is_one_micro_batch_without_any():
    (window,) = loader(1, alone()).windows(max_epochs=1)
    nothing = window.relaid(0, frozenset(window.unit_names))
    assert [one.num_tokens for one in nothing.micro_batches] == [0]


def test_a_users_batch_becomes_two_for_each_halving():
    (window,) = ForeignLoader([one_batch()], 1, 4, FORMAT, alone()).windows(max_epochs=1)
    sizes = [[len(one.unit_names) for one in window.relaid(number, frozenset()).micro_batches] for number in (0, 1, 2)]
    assert sizes == [[4], [2, 2], [1, 1, 1, 1]]
