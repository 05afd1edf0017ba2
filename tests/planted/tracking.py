"""Bugs of the room tracking/: what people see."""

from __future__ import annotations

from tests.planted.bug import Bug

_METRICS = "tests/tracking/test_metrics_file.py"

BUGS = [
    Bug(
        "metrics_line_repeated",
        "after a resume a step stands twice in metrics.jsonl",
        "tracking/metrics_file.py",
        'if record["global_step"] <= optimizer_step]',
        'if record["global_step"] <= optimizer_step + 1]',
        (f"{_METRICS}::test_resume_removes_later_steps_and_goes_on",),
    ),
    Bug(
        "metrics_lost_on_resume",
        "a resumed run begins metrics.jsonl anew",
        "tracking/metrics_file.py",
        "if resume_step is not None:",
        "if resume_step is None:",
        (f"{_METRICS}::test_resume_removes_later_steps_and_goes_on",),
    ),
    Bug(
        "nan_is_written_as_it_is",
        "metrics.jsonl is no JSON once a loss is not finite",
        "tracking/metrics_file.py",
        "return None if isinstance(value, float) and not math.isfinite(value) else value",
        "return value if not isinstance(value, float) or math.isfinite(value) else 0.0",
        (f"{_METRICS}::test_a_number_that_is_not_finite_is_null",),
    ),
    Bug(
        "means_weigh_calls",
        "means weigh a short batch as much as a long one",
        "trainer/metrics.py",
        "in enumerate((total, count)):",
        "in enumerate((total, 1)):",
        ("tests/trainer/test_metrics.py::test_mean_is_weighted_by_count_not_by_call",),
    ),
    Bug(
        "last_step_not_shown",
        "TensorBoard lacks the last steps of a run",
        "tracking/tracker.py",
        "        self._tell_slow_sinks()\n        for sink in self._every_step:\n            sink.close()",
        "        for sink in self._every_step:\n            sink.close()",
        ("tests/tracking/test_tracker.py",),
    ),
    Bug(
        "wandb_key_in_its_files",
        "W&B copies the key of the command line into its own files",
        "tracking/more_sinks.py",
        'word.replace(key, "[hidden]") for word in whole',
        "word for word in whole",
        ("tests/tracking/test_remote_sinks.py::test_a_run_writes_its_key_nowhere",),
    ),
    Bug(
        "wandb_key_has_no_effect",
        "a key of the command line never reaches W&B",
        "tracking/more_sinks.py",
        "if settings.key:",
        "if not settings.key:",
        ("tests/tracking/test_remote_sinks.py::test_the_key_of_a_runs_command_line_reaches_wandb",),
    ),
    Bug(
        "own_number_is_not_charted",
        "a number that a callback logs has no chart",
        "tracking/sinks.py",
        'if name != "global_step"}',
        'if name in ("loss", "lr", "eval_loss")}',
        ("tests/tracking/test_remote_sinks.py::test_wandb_offline_keeps_the_run_on_disk",),
    ),
    Bug(
        "accuracy_is_not_drawn",
        "the picture of a run lacks its token accuracy",
        "tracking/curves.py",
        "any(name in record for record in steps)",
        "all(name in record for record in steps)",
        ("tests/tracking/test_curves.py::test_token_accuracy_has_a_panel_where_the_file_knows_it",),
    ),
    Bug(
        "failed_runs_look_finished",
        "a tracker shows a run that has failed as one that has finished",
        "tracking/tracker.py",
        "lambda sink: sink.close(outcome)",
        "lambda sink: sink.close()",
        ("tests/tracking/test_tracker.py::test_slow_sinks_hear_how_the_run_has_ended",),
    ),
    Bug(
        "a_left_run_looks_failed",
        "a tracker shows a run that was asked to leave as one that has failed",
        "trainer/callbacks/tracking.py",
        "isinstance(error, Preempted)",
        "isinstance(error, KeyboardInterrupt)",
        ("tests/trainer/test_tracking_callback.py::test_a_tracker_hears_how_the_run_has_ended",),
    ),
    Bug(
        "a_tracker_goes_on_with_another_run",
        "after a resume the numbers of a run are drawn into the run that was in its folder before",
        "run/report.py",
        "*of_trackers, RESOLVED_CONFIG):",
        "of_trackers[0], RESOLVED_CONFIG):",
        (
            "tests/tracking/test_more_sinks.py::test_a_new_run_in_the_folder_of_another_goes_on_with_no_run_of_a_tracker",
        ),
    ),
    Bug(
        "a_silent_tracker_ends_the_run",
        "a tracker's server that does not answer is taken for a rank that is stuck, and the run ends",
        "trainer/callbacks/tracking.py",
        "if not self._tracker.has_servers:",
        "if self._tracker is not None:",
        ("tests/trainer/test_tracking_callback.py::test_a_server_that_is_silent_is_waited_for_in_a_long_phase",),
    ),
    Bug(
        "other_ranks_do_not_wait_for_servers",
        "rank 0 waits for the others after each record for a tracker, who know nothing of it: the run hangs",
        "tracking/tracker.py",
        "return Tracker(has_servers=bool(trackers))",
        "return Tracker()",
        ("tests/tracking/test_tracker.py::test_every_rank_knows_of_servers_that_the_first_waits_for",),
    ),
    Bug(
        "two_runs_are_one_line",
        "TensorBoard draws two runs of a folder as one zigzag",
        "tracking/sinks.py",
        "            _keep_events_aside(Path(folder))\n",
        "            pass\n",
        ("tests/tracking/test_remote_sinks.py::test_tensorboard_draws_two_runs_of_one_folder_apart",),
    ),
    Bug(
        "closed_before_it_is_opened_again",
        "a metrics file whose disk was away for a moment is lost, and a number of a closed file is written by",
        "tracking/metrics_file.py",
        "        old, self._file = self._file, self._open()  # where it cannot be opened, the old one stays\n"
        "        with suppress(OSError):\n"
        "            os.close(old)\n",
        "        os.close(self._file)\n        self._file = self._open()\n",
        (f"{_METRICS}::test_a_file_that_cannot_be_opened_again_is_waited_for_and_costs_nobody_a_file",),
    ),
    Bug(
        "a_disk_that_is_away_fails_the_end",
        "a run whose metrics file cannot be closed ends with an error, although all is exported",
        "tracking/metrics_file.py",
        "        with suppress(OSError):  # of a disk that is away; the run has ended in order all the same\n"
        "            os.close(self._file)\n",
        "        os.close(self._file)\n",
        (f"{_METRICS}::test_a_file_that_cannot_be_opened_again_is_waited_for_and_costs_nobody_a_file",),
    ),
    Bug(
        "long_curves_number_by_number",
        "the picture of a run of 100,000 steps takes half a minute at its end",
        "tracking/curves.py",
        "    sums, places, blocks = np.zeros(len(starts)), starts.copy(), values\n",
        "    return np.array([math.fsum(values[first : first + n]) for first, n in zip(starts, lengths)])\n"
        "    sums, places, blocks = np.zeros(len(starts)), starts.copy(), values\n",
        ("tests/tracking/test_curves.py::test_the_average_of_a_long_run_takes_no_time",),
    ),
    Bug(
        "windows_as_differences_of_sums",
        "one very large loss makes the smoothed curve behind it 0",
        "tracking/curves.py",
        "    return sums\n",
        "    totals = np.concatenate([[0.0], values.cumsum()])\n    return totals[starts + lengths] - totals[starts]\n",
        ("tests/tracking/test_curves.py::test_the_average_is_the_mean_of_the_finite_numbers_of_each_window",),
    ),
]
