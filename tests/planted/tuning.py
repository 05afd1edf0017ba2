"""Bugs of a run that finds its layout: what decides, what it may cost, and what a checkpoint keeps."""

from __future__ import annotations

from tests.planted.bug import Bug

_TRIALS = "tests/trainer/test_layout_trials.py::test_"
_TUNER = "tests/trainer/test_layout_tuner.py::test_"
_RUNS = "tests/runs/test_tuning.py::test_"

BUGS = [
    Bug(
        "layout_wins_once",
        "a machine that is busy for some steps changes the layout for the whole run",
        "trainer/layout_trials.py",
        "return best if len(again) == _STEPS_AGAIN and min(again) < to_beat * min(first) else self.first",
        "return best if len(again) == _STEPS_AGAIN else self.first",
        (f"{_TRIALS}a_machine_that_is_busy_while_the_first_is_tried_changes_nothing",),
    ),
    Bug(
        "trials_cost_what_they_like",
        "slow candidates are tried for ever",
        "trainer/layout_trials.py",
        "self._seconds_lost += max(",
        "self._seconds_lost = max(",
        (f"{_TRIALS}whatever_the_steps_take_the_trials_lose_no_more_than_4_and_a_tenth_of_a_short_run",),
    ),
    Bug(
        "first_step_of_the_process_counts",
        "the layout that is tried first is taken for slow, as its first step compiles",
        "trainer/layout_trials.py",
        "        yield self.first  #",
        "        yield from self._steps(self.first, 1)  #",
        (f"{_TRIALS}the_first_step_of_the_process_counts_for_nothing",),
    ),
    Bug(
        "win_within_the_noise",
        "steps that differ by chance change the layout",
        "trainer/layout_trials.py",
        "1 - max(_LEAST_WIN, median(first) / min(first) - 1)",
        "1 - _LEAST_WIN",
        (f"{_TRIALS}a_win_within_what_the_steps_differ_is_none",),
    ),
    Bug(
        "larger_layouts_run_out_too",
        "memory runs out once for each candidate",
        "trainer/layout_trials.py",
        "if one.max_tokens >= layout.max_tokens and",
        "if one.max_tokens == layout.max_tokens and",
        (f"{_TRIALS}after_memory_has_run_out_nothing_as_large_is_tried",),
    ),
    Bug(
        "micro_batches_stay_halved",
        "after a candidate that was too large the run is slow for 64 steps",
        "trainer/layout_tuner.py",
        "        if ran_out:\n",
        "        if False:\n",
        (f"{_TUNER}memory_that_runs_out_in_a_candidate_costs_that_step_alone",),
    ),
    Bug(
        "ranks_time_alone",
        "each rank keeps a layout of its own, and the ranks wait for each other for ever",
        "trainer/layout_tuner.py",
        "slowest = max_over(torch.tensor(seconds, dtype=torch.float64), self._strategy.groups.control)",
        "slowest = seconds",
        (f"{_TUNER}the_slowest_rank_counts",),
    ),
    Bug(
        "trials_compile_anew",
        "with compiled layers a run of 200 steps spends as long on a candidate's graph as on half of its steps",
        "trainer/layout_tuner.py",
        "if self._model.is_compiled or self._strategy.ds.deepcompile:",
        "if False:",
        (f"{_TUNER}where_there_is_nothing_to_choose_the_layout_stays_as_it_was",),
    ),
    Bug(
        "layout_of_other_machines",
        "a run that goes on elsewhere has the layout that was the fastest on the machines it has left",
        "trainer/layout_tuner.py",
        'restored is not None and restored["rests_on"] == self._rests_on()',
        "restored is not None",
        (f"{_TUNER}a_run_that_goes_on_elsewhere_tries_again",),
    ),
    Bug(
        "layout_not_in_checkpoint",
        "a run that goes on tunes again, and is not the unbroken run to the bit",
        "strategy/checkpoints.py",
        'trained.restored_layout = loaded.client_state.get("layout")',
        "trained.restored_layout = None",
        (f"{_RUNS}a_run_that_goes_on_takes_the_kept_layout_and_equals_the_unbroken_run",),
    ),
    Bug(
        "nothing_is_tried",
        "a run keeps the layout of its start, though another one is faster",
        "run/training_run.py",
        "            trainer.step_layouts = self.layout.candidates\n",
        "            pass\n",
        (f"{_RUNS}a_run_that_says_nothing_of_its_layout_tries_those_that_it_may_choose",),
    ),
    Bug(
        "a_run_that_is_not_to_tune_does",
        "--train.tune_layout false changes nothing",
        "trainer/layout_tuner.py",
        "is_asked = strategy.train.tune_layout and not",
        "is_asked = not",
        (f"{_RUNS}a_run_that_says_nothing_of_its_layout_tries_those_that_it_may_choose",),
    ),
]
