"""The loader's windows: as many micro-batches on every rank, and together the samples of the schedule."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import pytest
import torch

from openrlhf.batching import (
    FixedSize,
    ForeignLoader,
    MicroBatchFormat,
    StepSchedule,
    StepWindowLoader,
    TokenBudget,
    TokenSequence,
    Unit,
    pads_alone,
)
from openrlhf.errors import UserError
from openrlhf.parallel.groups import ProcessGroups, alone

FORMAT = MicroBatchFormat()
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


def test_a_users_sample_is_left_out_on_its_own_rank_alone():
    loaders = [ForeignLoader([one_batch()], 1, 4, FORMAT, rank_of(rank, 2)) for rank in (0, 1)]
    windows = [next(one.windows(max_epochs=1)) for one in loaders]
    without = frozenset(windows[1].unit_names[:1])
    assert [len(window.relaid(0, without).unit_names) for window in windows] == [4, 3]


# --- rows by a collate_fn, and rows that are none ---------------------------------------------------------------------


def collated(data: object, collate_fn, layout=ONE_BY_ONE) -> StepWindowLoader:
    return StepWindowLoader(data, StepSchedule(4, 4, seed=3, shuffle=False), layout, FORMAT, alone(), collate_fn)


def without_the_first(items):
    """`(B, S)` each, with one target fewer."""
    ids, attention, mask = (
        torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in zip(*items, strict=True)
    )
    mask = mask.clone()
    mask[:, 0] = 0
    return ids, attention, mask


def targets_of(made: StepWindowLoader) -> int:
    return sum(batch.num_target_tokens for window in made.windows(max_epochs=1) for batch in window.micro_batches)


def test_a_collate_fn_that_masks_more_is_heard_by_a_training():
    data = rows(4)
    assert targets_of(collated(data, without_the_first)) == targets_of(collated(data, None)) - 4
    assert targets_of(collated(data, pads_alone(lambda items: without_the_first(items)))) == targets_of(
        collated(data, None)
    ), "one that says that it only pads is not asked row by row"


def test_a_collate_fn_may_make_the_rows():
    texts = [{"text": "a" * (3 + number)} for number in range(4)]

    def collate(items):
        ids = [torch.full((len(item["text"]),), 7) for item in items]
        return without_the_first([(one, torch.ones_like(one), torch.ones_like(one)) for one in ids])

    (window,) = collated(texts, collate, TokenBudget(12, packed=False)).windows(max_epochs=1)
    assert sum(one.num_tokens for one in window.micro_batches) == 3 + 4 + 5 + 6
    assert len(window.micro_batches) == 2, "their lengths are known"


ONES = torch.ones(1, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ({"input_ids": [1, 2], "labels": [1, 2]}, "row 0 is a dict with input_ids, labels, and must be"),
        ("text", "row 0 is a str, and must be"),
        ((ONES, ONES), "a tuple of 2: a Tensor of shape"),
        ((ONES, ONES, ONES[:, :2]), "a tuple of 3: a Tensor of shape (1, 3), a Tensor of shape (1, 3), a Tensor"),
        ((ONES, ONES, "mask"), "a Tensor of shape (1, 3), a str"),
        ((ONES.repeat(2, 1),) * 3, "must be one row alone"),
    ],
)
def test_an_item_that_is_no_triple_is_named(item: object, found: str):
    with pytest.raises(UserError) as caught:
        targets_of(collated([item] * 4, None))
    assert found in str(caught.value)


def test_a_loop_of_ones_own_is_given_whatever_its_collate_fn_makes():
    pairs = [row[:2] for row in rows(4)]
    sizes = [len(batch["texts"]) for batch in collated(pairs, lambda items: {"texts": items}, FixedSize(3))]
    assert sizes == [3, 1]


def test_a_collate_fn_of_units_would_not_be_heard_and_is_refused():
    class Units(list):
        def unit(self, row):
            return Unit((TokenSequence(*self[row][::2]),), f"row {row}")

        def unit_lengths(self, row):
            return (len(self[row][0]),)

    made = collated(Units(rows(4)), without_the_first)
    assert len(list(made)) == 4, "a loop of one's own is given its batches"
    with pytest.raises(UserError, match=r"the collate_fn given with a Units would not be called.*Units\.unit\(row\)"):
        targets_of(made)


# --- a loop of the user's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [ONE_BY_ONE, FixedSize(2), TokenBudget(8, packed=False)], ids=str)
def test_a_loop_of_ones_own_has_as_many_batches_on_every_rank(layout):
    of_ranks = [loader(9, rank_of(rank, 2), layout) for rank in (0, 1)]
    batches = [list(one) for one in of_ranks]
    assert [len(one) for one in batches] == [len(one) for one in of_ranks]
    assert len(batches[0]) == len(batches[1])
    seen = [{int(ids[0]) for batch in one for ids in batch[0]} for one in batches]
    assert seen[0] | seen[1] == {*range(10, 19)}
    assert seen[0] & seen[1], "the last window has one row: it comes to both"


def test_a_batch_of_ones_own_that_is_no_triple_is_named_before_the_first_step():
    ids = torch.tensor([[1, 2]])
    made = ForeignLoader([{"input_ids": ids, "labels": ids}], 1, 1, FORMAT, alone(), look_at_step=print)
    with pytest.raises(UserError, match="micro-batch 0 is a dict with input_ids, labels, and must be"):
        next(made.windows(max_epochs=1, look_at_step=print))


def test_a_collate_fn_that_only_pads_may_be_wrapped():
    made = StepWindowLoader(
        rows(4),
        StepSchedule(4, 4, seed=3),
        ONE_BY_ONE,
        FORMAT,
        alone(),
        collate_fn=functools.partial(pads_alone(never_called)),
    )
    assert sum(one.num_tokens for one in next(made.windows(max_epochs=1)).micro_batches) == sum(
        len(ids) for ids, *_ in rows(4)
    )


def never_called(items):
    raise AssertionError("the rows themselves are trained")


def test_a_stream_that_does_not_know_its_length_is_read():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows(5))

    stream = torch.utils.data.DataLoader(Stream(), batch_size=1)
    made = ForeignLoader(stream, 2, 2, FORMAT, alone())
    assert made.steps_per_epoch == 0
    assert len(list(made.windows(max_epochs=1))) == 3
