"""Bugs of what grows: windows of a million units, saves and heartbeats of thousands of ranks, host memory."""

from __future__ import annotations

from tests.planted.bug import Bug

_LAYOUT = "tests/batching/test_layout.py"
_ORDER = "tests/batching/test_order_and_schedule.py"

BUGS = [
    Bug(
        "fuller_bins_filled_first",
        "after an upgrade a run's micro-batches are others, and ranks wait for each other longer",
        "batching/layout.py",
        "keys = np.sort(np.concatenate([filled[:num_units], keys[num_units:]]))",
        "keys = np.concatenate([keys[num_units:], np.sort(filled[:num_units])])",
        (f"{_LAYOUT}::test_a_large_windows_layout_is_that_of_the_plain_way",),
    ),
    Bug(
        "units_placed_a_few_at_a_time",
        "a step of a million units waits for its layout",
        "batching/layout.py",
        "num_units = int(is_emptier_before.argmax()) + 1 if",
        "num_units = min(20, int(is_emptier_before.argmax()) + 1) if",
        (f"{_LAYOUT}::test_a_window_of_very_many_units_costs_little",),
    ),
    Bug(
        "values_outside_walked_once",
        "a large window holds rows that do not exist",
        "batching/schedule.py",
        "outside = outside[walked >= num_values]",
        "outside = outside[:0]",
        (f"{_ORDER}::test_the_order_is_that_of_the_plain_way[40000-1073741825]",),
    ),
]
