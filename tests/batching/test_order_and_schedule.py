"""Global order and step windows: what makes a step does not depend on how it is laid out."""

import numpy as np
import pytest

from openrlhf.batching.schedule import StepSchedule, epoch_order, permute
from openrlhf.errors import UserError
from tests.batching import plain_layout


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_an_epoch_holds_every_row_once(num_rows):
    order = epoch_order(np.arange(num_rows), num_rows, seed=7, epoch=3)
    assert sorted(order.tolist()) == list(range(num_rows))


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    places = np.arange(500)
    order = epoch_order(places, 500, seed=1, epoch=0).tolist()
    assert order == [epoch_order(np.array([place]), 500, 1, 0)[0] for place in places]
    assert order != epoch_order(places, 500, seed=2, epoch=0).tolist()
    assert order != epoch_order(places, 500, seed=1, epoch=1).tolist()
    assert order != places.tolist()


def test_the_order_looks_random():
    """A row's place is uniform over seeds: chi-squared of one row's place in 16 bins over 4,000 seeds."""
    places = [epoch_order(np.array([5]), 160, seed, 0)[0] // 10 for seed in range(4000)]
    counts = np.bincount(places, minlength=16)
    chi_squared = ((counts - 250.0) ** 2 / 250.0).sum()
    assert chi_squared < 45  # 15 degrees of freedom: larger by chance once in ten thousand


def test_a_billion_rows_cost_what_a_few_cost():
    assert len(set(epoch_order(np.arange(1000), 10**9, 0, 0).tolist())) == 1000


@pytest.mark.parametrize("num_rows", [2, 300, 70_000, 10**9, 2**30 + 1])
@pytest.mark.parametrize("num_places", [5, 40_000])
def test_the_order_is_that_of_the_plain_way(num_rows, num_places):
    """Many places are looked up in tables, few are computed."""
    places = np.arange(min(num_rows, num_places))
    order = permute(places, num_rows, np.uint64(77))
    some = places[:: max(1, len(places) // 500)]
    assert order[some].tolist() == [plain_layout.permuted(place, num_rows, 77) for place in some.tolist()]


def test_the_last_window_is_smaller_and_nothing_is_lost():
    schedule = StepSchedule(num_rows=10, batch_size=4, seed=0)
    windows = list(schedule.windows(max_epochs=2))
    assert [(w.epoch, w.step_in_epoch, len(w.rows)) for w in windows] == [
        (0, 0, 4), (0, 1, 4), (0, 2, 2), (1, 0, 4), (1, 1, 4), (1, 2, 2),
    ]  # fmt: skip
    for epoch in (0, 1):
        rows = np.concatenate([w.rows for w in windows if w.epoch == epoch])
        assert sorted(rows.tolist()) == list(range(10))


@pytest.mark.parametrize("num_done", range(7))
def test_consumed_samples_tells_where_the_stream_stands(num_done):
    schedule = StepSchedule(num_rows=10, batch_size=4, seed=0)
    whole = list(schedule.windows(max_epochs=2))
    consumed_samples = sum(len(w.rows) for w in whole[:num_done])
    rest = list(schedule.windows(consumed_samples, max_epochs=2))
    assert [w.rows.tolist() for w in rest] == [w.rows.tolist() for w in whole[num_done:]]
    assert schedule.num_steps_before(consumed_samples) == num_done


def test_consumed_samples_between_two_windows_is_refused():
    with pytest.raises(UserError, match="consumed_samples=3 does not lie between two steps"):
        StepSchedule(num_rows=10, batch_size=4, seed=0).position(3)
