"""Bugs of the start of a command."""

from __future__ import annotations

from tests.planted.bug import Bug

_START = "tests/runs/test_start.py::test_what_modules_made_is_left_out_of_later_searches"

BUGS = [
    Bug(
        "garbage_is_never_searched_again",
        "the memory of a long run grows",
        "cli/entry.py",
        "        if was_enabled:\n            gc.enable()",
        "        pass",
        (_START,),
    ),
    Bug(
        "loaded_modules_are_searched_for_garbage",
        "a start takes 0.7 s more, and each later search of the heap 0.6 s",
        "cli/entry.py",
        "        gc.freeze()\n",
        "",
        (_START,),
    ),
    Bug(
        "cut_rows_are_no_news",
        "the start of a run says nothing of rows that it cuts",
        "run/start_table.py",
        "if details := train_data.report.details():",
        "if details := []:",
        ("tests/runs/test_start_table.py::test_the_table_tells_what_became_of_the_rows",),
    ),
]
