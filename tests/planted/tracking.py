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
        "tracking/sinks/jsonl.py",
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
        "tracking/meters.py",
        "row[1] += _without_graph(count)",
        "row[1] += 1",
        ("tests/tracking/test_meters.py::test_mean_is_weighted_by_count_not_by_call",),
    ),
    Bug(
        "last_step_not_shown",
        "TensorBoard lacks the last steps of a run",
        "tracking/tracker.py",
        'and all are closed."""\n        self._tell_slow_sinks()\n',
        'and all are closed."""\n',
        ("tests/tracking/test_tracker.py",),
    ),
]
