"""The rule by which a run finds its layout, on a machine whose clock is made up."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from openrlhf.batching import StepLayout
from openrlhf.trainer.layout_trials import LayoutTrials, Timing

FIRST, SECOND, THIRD, FOURTH = (StepLayout(tokens) for tokens in (8_000, 16_000, 4_000, 32_000))
ALL = (FIRST, SECOND, THIRD, FOURTH)
Factor = Callable[[StepLayout, int], float]  # of a layout in the step of that number: how slow it is


def always(**factors: float) -> Factor:
    """Args: factors: of second, third and fourth; 1 where it is not said."""
    names = {SECOND: "second", THIRD: "third", FOURTH: "fourth"}
    return lambda layout, step: factors.get(names.get(layout, ""), 1.0)


class Machine:
    """Plays trials. A step of the first layout takes a second."""

    def __init__(self, factor: Factor, layouts=ALL, steps_left=200, out_of_memory=(), from_step=0):
        self.trials = LayoutTrials(layouts, steps_left)
        self.steps: list[tuple[StepLayout, float]] = []
        self.kept: StepLayout | None = None
        running = self.trials.run()
        layout = next(running)
        while True:
            seconds = factor(layout, len(self.steps))
            self.steps.append((layout, seconds))
            if len(self.steps) == steps_left:  # the run is over
                return
            try:
                ran_out = layout in out_of_memory and len(self.steps) > from_step
                layout = running.send(Timing(seconds, 1000, ran_out))
            except StopIteration as end:
                self.kept = end.value
                return

    def times_tried(self, layout: StepLayout) -> int:
        return [one for one, _ in self.steps].count(layout)

    @property
    def seconds_lost(self) -> float:
        """Against a run that does not tune."""
        return sum(seconds - 1 for layout, seconds in self.steps if layout != FIRST)


@pytest.mark.parametrize(
    ("factor", "kept"),
    [
        (always(second=0.9), SECOND),
        (always(second=0.9, third=0.8), THIRD),
        (always(second=1.2, third=1.6, fourth=0.94), FOURTH),
        (always(second=0.98), FIRST),
        (always(second=1.02, third=1.1, fourth=1.4), FIRST),
    ],
    ids=["second", "third", "fourth", "a win of 2%", "first"],
)
def test_the_fastest_is_kept_if_it_wins_by_more_than_3_percent(factor, kept):
    assert Machine(factor).kept == kept


@pytest.mark.parametrize("slow", range(1, 17))
@pytest.mark.parametrize("second", [0.9, 1.0])
def test_one_disturbed_step_decides_nothing(slow, second):
    machine = Machine(lambda layout, step: (1.45 if step == slow else 1.0) * always(second=second)(layout, step))
    assert machine.kept == (SECOND if second < 1 else FIRST)


def test_the_first_step_of_the_process_counts_for_nothing():
    machine = Machine(lambda layout, step: 9.0 if step == 0 else always(second=1.05)(layout, step))
    assert machine.kept == FIRST
    assert machine.trials.seconds_a_token[FIRST] == [0.001] * 3


def test_a_machine_that_is_busy_while_the_first_is_tried_changes_nothing():
    assert Machine(lambda layout, step: 1.4 if step < 4 else 1.0).kept == FIRST


def test_a_win_within_what_the_steps_differ_is_none():
    uneven = (1.0, 1.2)
    machine = Machine(lambda layout, step: uneven[step % 2] * always(second=0.9)(layout, step), (FIRST, SECOND))
    assert machine.kept == FIRST


@pytest.mark.parametrize("seed", range(20))
def test_a_clear_win_is_found_on_an_uneven_machine(seed):
    draw = random.Random(seed)
    assert Machine(lambda layout, step: draw.uniform(1, 1.05) * always(third=0.8)(layout, step)).kept == THIRD


@pytest.mark.parametrize("steps_left", [20, 30, 40, 200, 100_000])
def test_whatever_the_steps_take_the_trials_lose_no_more_than_4_and_a_tenth_of_a_short_run(steps_left):
    layouts = [FIRST, *(StepLayout(1000 + number) for number in range(20))]
    for seed in range(200):
        draw = random.Random(seed)
        factors = draw.choice([(3.0,), (1.0, 3.0), (1.0, 1.14, 1.49, 3.0), (0.5, 0.97, 1.0, 1.05, 2.0)])

        def factor(layout, step, draw=draw, factors=factors):
            return 1.0 if layout == FIRST else draw.choice(factors)

        assert Machine(factor, layouts, steps_left).seconds_lost <= min(4, steps_left / 10) + 1e-9


def test_a_layout_that_is_much_slower_is_left_after_one_step():
    machine = Machine(always(second=1.6, third=1.2))
    assert machine.times_tried(SECOND) == 1
    assert machine.times_tried(THIRD) == 2
    assert machine.times_tried(FOURTH) == 3


def test_after_memory_has_run_out_nothing_as_large_is_tried():
    recomputed = StepLayout(32_000, recomputes=True)
    machine = Machine(always(fourth=0.5), (FIRST, SECOND, FOURTH, recomputed, THIRD), out_of_memory=(SECOND,))
    assert machine.trials.struck == {SECOND, FOURTH}
    assert [machine.times_tried(one) for one in (SECOND, FOURTH, recomputed, THIRD)] == [1, 0, 3, 3]


def test_a_layout_for_which_memory_runs_out_when_it_is_tried_again_is_not_kept():
    machine = Machine(always(second=0.8), (FIRST, SECOND), out_of_memory=(SECOND,), from_step=8)
    assert machine.times_tried(SECOND) == 4
    assert machine.kept == FIRST
