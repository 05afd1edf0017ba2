"""Bugs of the page that a run leaves, and of the table that it begins with."""

from __future__ import annotations

from tests.planted.bug import Bug

BUGS = [
    Bug(
        "restarts_are_not_written_down",
        "the page of a run that was broken off says that there was no restart",
        "tracking/tracker.py",
        "    note_restart(Path(output_dir), resume_step)\n",
        "",
        (
            "tests/runs/test_resume.py::test_resumed_on_one_rank[inside an epoch]",
            "tests/tracking/test_tracker.py::test_each_restart_has_a_line_beside_the_metrics_until_a_new_run_begins",
        ),
    ),
    Bug(
        "restarts_of_an_earlier_run_are_told",
        "a new run in the folder of another one tells of that one's restarts",
        "tracking/metrics_file.py",
        "        keep_aside(folder / RESTARTS_FILE)\n        return\n",
        "        return\n",
        ("tests/tracking/test_tracker.py::test_each_restart_has_a_line_beside_the_metrics_until_a_new_run_begins",),
    ),
    Bug(
        "host_memory_is_in_kilobytes",
        "the page shows a thousandth of the memory that a process has held",
        "trainer/callbacks/tracking.py",
        'sys.platform == "darwin" else 1024',
        'sys.platform == "darwin" else 1',
        ("tests/trainer/test_tracking_callback.py::test_without_a_gpu_it_is_the_peak_of_the_process",),
    ),
    Bug(
        "host_memory_is_not_drawn",
        "the page of a run on the CPU says nothing of its memory",
        "run/report.py",
        '    "memory of the process, bytes": ("host_memory_bytes",),\n',
        "",
        ("tests/runs/test_answers.py::test_the_page_has_curves_answers_data_and_settings",),
    ),
]
