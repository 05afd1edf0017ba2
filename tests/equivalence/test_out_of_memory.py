"""Memory that runs out, and layouts that change, change no result: against a run in which nothing happens."""

from __future__ import annotations

import functools

import pytest

from tests.equivalence.cells import Layout, train_in_layout
from tests.equivalence.memory_cases import (
    Fault,
    evaluate_with_a_fault,
    train_in_changing_layouts,
    train_while_tuning,
    train_with_faults,
)
from tests.equivalence.reference import Curve, Recipe
from tests.equivalence.test_layouts import POOLS
from tests.helpers.ranks import RankPool
from tests.helpers.slow import slow

RECIPE = Recipe("llama", num_steps=6)
PLACES = ("forward", "head", "backward", "reduction")
BEHIND_A_COLLECTIVE = Fault(5, 0, "reduced")  # all ranks at one place can go on from there


def faults(ranks: tuple[int, ...] = (0, 1, 2, 3), last: int = 1) -> tuple[Fault, ...]:
    """One a step, in the second micro-batch, behind gradients of the first."""
    return tuple(Fault(1 + number, last, where, ranks) for number, where in enumerate(PLACES))


def assert_unchanged(found: Curve, unbroken: Curve, tolerance: float = 1e-6) -> None:
    assert found.losses == pytest.approx(unbroken.losses, rel=tolerance)
    assert found.grad_norms == pytest.approx(unbroken.grad_norms, rel=10 * tolerance)
    for name, value in unbroken.weights.items():
        assert (found.weights[name] - value).abs().max() < 5 * tolerance, name


@functools.cache
def _unbroken(pool: RankPool, layout: Layout) -> Curve:
    return pool.run(train_in_layout, RECIPE, layout)[0]


def broken_and_unbroken(request, ranks: int, layout: Layout, some: tuple[Fault, ...] = ()) -> tuple[list, Curve]:
    pool = request.getfixturevalue(POOLS[ranks])
    return pool.run(train_with_faults, RECIPE, layout, some), _unbroken(pool, layout)


LAYOUTS = [Layout(stage, 2) for stage in (0, 1, 2, 3)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("ranks", [*slow([1]), 2])
def test_a_step_for_which_memory_runs_out_on_all_ranks_is_computed_again(ranks, layout, request):
    broken, unbroken = broken_and_unbroken(request, ranks, layout, (*faults(), BEHIND_A_COLLECTIVE))
    for curve, told in broken:
        assert_unchanged(curve, unbroken)
        assert sum("computed again" in line for line in told) == len(PLACES) + 1


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=str)
def test_a_step_for_which_memory_runs_out_on_one_rank_is_computed_again(layout, request):
    broken, unbroken = broken_and_unbroken(request, 2, layout, faults(ranks=(1,)))
    for curve, told in broken:
        assert_unchanged(curve, unbroken)
        assert sum("rank 1" in line and "rank 0" not in line for line in told) == len(PLACES)


@pytest.mark.parametrize("layout", [LAYOUTS[1], *slow(LAYOUTS[2:])], ids=str)
def test_a_step_for_which_memory_runs_out_between_two_buckets_of_gradients_is_computed_again(layout, request):
    broken, unbroken = broken_and_unbroken(request, 2, layout, (Fault(1, 1, "bucket"), Fault(3, 1, "bucket")))
    for curve, _ in broken:
        assert_unchanged(curve, unbroken)


def test_a_step_for_which_memory_runs_out_while_weights_are_gathered_is_computed_again(request):
    broken, unbroken = broken_and_unbroken(request, 2, LAYOUTS[3], (Fault(1, 1, "gather"), Fault(3, 0, "gather")))
    for curve, _ in broken:
        assert_unchanged(curve, unbroken)


def test_a_ring_computes_a_step_again(request):
    layout = Layout(2, 4, packed=True, ring=2)
    broken, unbroken = broken_and_unbroken(request, 2, layout, faults(last=0))
    for curve, _ in broken:
        assert_unchanged(curve, unbroken)


@pytest.mark.parametrize("stage", [2, *slow([0, 1, 3])])
def test_a_step_in_bf16_is_computed_again(stage, request):
    layout = Layout(stage, 2, dtype="bf16")
    broken, unbroken = broken_and_unbroken(request, 2, layout, faults())
    for curve, _ in broken:
        assert_unchanged(curve, unbroken, tolerance=2e-3)


CHANGING = [Layout(2, 2), Layout(3, 2), Layout(2, 2, packed=True), Layout(2, 4, packed=True, ring=2)]


@pytest.mark.parametrize("layout", CHANGING, ids=str)
def test_a_layout_that_changes_at_every_step_changes_no_result(layout, request):
    pool = request.getfixturevalue("two_ranks")
    for curve in pool.run(train_in_changing_layouts, RECIPE, layout):
        assert_unchanged(curve, _unbroken(pool, layout))


@pytest.mark.parametrize(("ranks", "layout"), [(1, Layout(2, 2)), (2, Layout(3, 2, packed=True))], ids=str)
def test_a_run_that_tunes_its_layout_equals_one_that_does_not(ranks, layout, request):
    pool, recipe = request.getfixturevalue(POOLS[ranks]), Recipe("llama", num_steps=16)
    unbroken, slow_rank = pool.run(train_in_layout, recipe, layout)[0], ranks - 1
    for curve, layouts in pool.run(train_while_tuning, recipe, layout, slow_rank):
        assert_unchanged(curve, unbroken)
        assert set(layouts) == {"64 False", "128 False", "96 True"}
        assert layouts[-1] == "96 True", "the ranks keep what is fastest on the slowest of them"


EVALUATIONS = [
    *((1, Layout(stage, 4), (0,)) for stage in (1, 2, 3)),
    (2, Layout(1, 2), (1,)),
    (2, Layout(2, 2), (1,)),
    (2, Layout(3, 2), (0, 1)),
    (2, Layout(2, 4, packed=True, ring=2), (0, 1)),
]


@pytest.mark.parametrize(("ranks", "layout", "failing"), EVALUATIONS, ids=str)
def test_an_evaluation_for_which_memory_runs_out_says_the_same(ranks, layout, failing, request):
    for right, found, halvings in request.getfixturevalue(POOLS[ranks]).run(
        evaluate_with_a_fault, RECIPE, layout, failing
    ):
        assert found == pytest.approx(right, rel=1e-6)
        assert halvings == 1
