"""Bugs of the loop's events: trainer/trainer.py and trainer/callbacks/."""

from __future__ import annotations

from tests.planted.bug import Bug

_CALLBACKS = "tests/trainer/test_callbacks.py"

BUGS = [
    Bug(
        "logged_numbers_lost",
        "numbers that a callback logs are in no record",
        "trainer/callbacks/tracking.py",
        "self._tracker.log_step(metrics | _peak_bytes(trainer.strategy.device) | trainer.take_logged())",
        "self._tracker.log_step(metrics | _peak_bytes(trainer.strategy.device))",
        (f"{_CALLBACKS}::test_events_come_in_order_and_numbers_reach_the_records",),
    ),
    Bug(
        "users_come_last",
        "a number that a callback logs is in the record of the next step",
        "trainer/callbacks/callback.py",
        "        self._tell_users(event, dict(record))\n        self._tell_standard(event, record)\n",
        "        self._tell_standard(event, record)\n        self._tell_users(event, dict(record))\n",
        (f"{_CALLBACKS}::test_events_come_in_order_and_numbers_reach_the_records",),
    ),
    Bug(
        "record_is_shared",
        "a callback that changes the record it is shown changes metrics.jsonl",
        "trainer/callbacks/callback.py",
        "self._tell_users(event, dict(record))",
        "self._tell_users(event, record)",
        (f"{_CALLBACKS}::test_the_record_is_not_the_callbacks_to_change",),
    ),
    Bug(
        "finished_run_trains_on",
        "a run that was stopped early trains on when it starts again",
        "run/training_run.py",
        "        if not self._is_trained:\n            with",
        "        if True:\n            with",
        (f"{_CALLBACKS}::test_a_run_that_was_stopped_early_is_only_exported_when_it_starts_again",),
    ),
    Bug(
        "wish_to_stop_is_lost",
        "a callback asks for the end of the run, and the run goes on",
        "trainer/callbacks/callback.py",
        "wishes.stop_reason = next((one.stop_reason for one in wished if one.stop_reason is not None), None)",
        "wishes.stop_reason = None",
        (f"{_CALLBACKS}::test_one_ranks_wish_to_stop_ends_the_run_on_all_with_its_model",),
    ),
    Bug(
        "failure_of_a_callback_is_swallowed",
        "a run goes on although its callback has failed",
        "trainer/callbacks/callback.py",
        "        if lines:\n            raise CallbackFailed",
        "        if False:\n            raise CallbackFailed",
        (f"{_CALLBACKS}::test_a_callback_that_raises_on_one_rank_is_named_and_ends_the_run_in_order",),
    ),
    Bug(
        "request_to_save_is_lost",
        "a callback asks for a save, and there is none",
        "trainer/callbacks/saving.py",
        "if is_wished or self._is_due(trainer):",
        "if self._is_due(trainer):",
        (f"{_CALLBACKS}::test_a_requested_save_is_made_at_that_step",),
    ),
    Bug(
        "max_steps_leaves_the_schedule",
        "--train.max_steps stops a run in the middle of its learning rate's way",
        "batching/schedule.py",
        "return num_steps if max_steps is None else min(num_steps, max_steps)",
        "return num_steps",
        (f"{_CALLBACKS}::test_max_steps_ends_the_run_and_its_schedule",),
    ),
    Bug(
        "patience_is_one_too_long",
        "--train.early_stop_patience waits for one evaluation more",
        "trainer/evaluation.py",
        "if num_evals >= self._patience:",
        "if num_evals > self._patience:",
        (f"{_CALLBACKS}::test_early_stop_after_evaluations_without_a_new_best",),
    ),
    Bug(
        "a_new_best_does_not_count",
        "a new best does not begin the patience anew",
        "checkpoint/progress.py",
        "num_evals_since_best=0 if is_best else self.num_evals_since_best + 1,",
        "num_evals_since_best=self.num_evals_since_best + 1,",
        (f"{_CALLBACKS}::test_early_stop_after_evaluations_without_a_new_best",),
    ),
    Bug(
        "logged_at_the_end_lost",
        "numbers that a callback logs at the end of the run are in no record",
        "trainer/callbacks/tracking.py",
        "if more := trainer.take_logged():",
        "if more := {}:",
        (f"{_CALLBACKS}::test_numbers_of_the_end_have_a_line_of_their_own",),
    ),
    Bug(
        "early_request_to_leave_forgotten",
        "a run that is asked to leave before its first step trains to its end",
        "trainer/callbacks/preemption.py",
        "outer._first if isinstance(outer, LeaveRequests) else self._first",
        "self._first",
        (f"{_CALLBACKS}::test_a_signal_before_the_first_step_is_heeded_after_it",),
    ),
    Bug(
        "a_stopped_run_trains_on",
        "a run that is asked to leave in the step that stops it trains on when it starts again",
        "trainer/callbacks/preemption.py",
        "finished=trainer.wishes.stop_reason is not None,",
        "finished=False,",
        (f"{_CALLBACKS}::test_a_signal_in_the_step_that_stops_the_run_leaves_it_stopped",),
    ),
]
