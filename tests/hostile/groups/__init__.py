"""The cases by topic. A new group is a file with `CASES`, and a line in `GROUPS`."""

from __future__ import annotations

from tests.hostile.case import Case
from tests.hostile.groups import endings, ends_of_runs, inputs, outputs, ownership, rows, secrets, settings

GROUPS = {
    "ownership": ownership,
    "outputs": outputs,
    "ends of runs": ends_of_runs,
    "endings": endings,
    "secrets": secrets,
    "settings": settings,
    "rows": rows,
    "inputs": inputs,
}


def all_cases() -> list[tuple[str, Case]]:
    """Every case with the name of its group."""
    return [(name, case) for name, group in GROUPS.items() for case in group.CASES]
