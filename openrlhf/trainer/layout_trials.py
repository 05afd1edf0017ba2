"""The rule by which a run finds its layout: its first steps try candidates, and a faster one must win twice.

The trials are bounded: the seconds that they lose against the fastest layout known are counted, and a trial begins only
where it can lose no more than is left, taking it that no candidate is over `_WORST` times as slow.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from statistics import median

from openrlhf.batching import StepLayout

LEAST_STEPS = 20  # that a run has left: below, there is too little to win
_STEPS_OF_A_RUN = 200
_SHARE_TO_LOSE = 0.02  # of such a run; of a shorter one as many steps, and at most a tenth
_WORST = 3.0
_STEPS, _STEPS_AGAIN = 3, 2  # of a layout, the least of which counts: what disturbs a step only makes it slower
_HOPELESS = (1.5, 1.15)  # times the fastest, after one step, and after two
_LEAST_WIN = 0.03


@dataclass(frozen=True)
class Timing:
    """The outcome of a step, the same on all ranks."""

    seconds: float
    num_tokens: int
    ran_out: bool = False  # of memory, in a layout that is not the first


class LayoutTrials:
    """Candidates, and what their steps have taken.

    Args:
        layouts: the first is kept unless another wins.
        num_steps_left: of the run.

    Attributes:
        seconds_a_token: of each step of a layout.
        struck: layouts for which memory ran out, and those that need as much.
    """

    def __init__(self, layouts: Sequence[StepLayout], num_steps_left: int):
        self.first, *self._others = layouts
        self.seconds_a_token: dict[StepLayout, list[float]] = {}
        self.struck: set[StepLayout] = set()
        self._steps_to_lose = min(_SHARE_TO_LOSE * _STEPS_OF_A_RUN, num_steps_left / 10)
        self._seconds_lost, self._seconds_a_step = 0.0, math.inf

    def run(self) -> Generator[StepLayout, Timing, StepLayout]:
        """Yields the layout of each next step, and is sent its timing. Returns the layout to keep."""
        yield self.first  # the first step of a process compiles and allocates, whatever its layout
        first = yield from self._steps(self.first, _STEPS)
        for layout in self._others:
            yield from self._steps(layout, _STEPS)
        best = min(self.seconds_a_token, key=self._least)
        to_beat = 1 - max(_LEAST_WIN, median(first) / min(first) - 1)  # by more than what the first's steps differ
        if self._least(best) >= to_beat * min(first):
            return self.first
        # Again, as the machine may have been slower while the first was tried.
        first = yield from self._steps(self.first, _STEPS_AGAIN)
        again = yield from self._steps(best, _STEPS_AGAIN)
        return best if len(again) == _STEPS_AGAIN and min(again) < to_beat * min(first) else self.first

    def _steps(self, layout: StepLayout, number: int) -> Generator[StepLayout, Timing, list[float]]:
        """So many steps of a layout, or fewer where it is hopeless; seconds a token of each."""
        rates: list[float] = []
        while len(rates) < number and self._may_try(layout, rates):
            timing = yield layout
            self._count_loss(layout, timing)
            if timing.ran_out:
                self._strike(layout)
                return []
            rates.append(timing.seconds / timing.num_tokens)
            self.seconds_a_token.setdefault(layout, []).append(rates[-1])
        return rates

    def _may_try(self, layout: StepLayout, rates: list[float]) -> bool:
        if layout == self.first:
            return True
        is_hopeless = rates and min(rates) > _HOPELESS[len(rates) - 1] * self._fastest()
        at_stake = (_WORST - 1) * self._seconds_a_step
        can_lose = self._seconds_lost + at_stake <= self._steps_to_lose * self._seconds_a_step
        return layout not in self.struck and not is_hopeless and can_lose

    def _count_loss(self, layout: StepLayout, timing: Timing) -> None:
        if layout == self.first:
            self._seconds_a_step = min(self._seconds_a_step, timing.seconds)
        else:
            self._seconds_lost += max(0.0, timing.seconds - self._fastest() * timing.num_tokens)

    def _strike(self, layout: StepLayout) -> None:
        for one in self._others:
            if one.max_tokens >= layout.max_tokens and one.recomputes <= layout.recomputes:
                self.struck.add(one)
                self.seconds_a_token.pop(one, None)

    def _fastest(self) -> float:
        return min(map(self._least, self.seconds_a_token))

    def _least(self, layout: StepLayout) -> float:
        return min(self.seconds_a_token[layout])
