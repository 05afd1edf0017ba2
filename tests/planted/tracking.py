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
]
