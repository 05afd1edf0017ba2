"""The table of all cases: what is done, what the user must see, what came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.hostile.case import Judged

KINDS = ("disk", "silent", "hang", "traceback", "exit code")
WIDEST_CELL = 160


def in_markdown(judged: Sequence[Judged]) -> str:
    """The whole page."""
    counts = Counter(problem.kind for one in judged for problem in one.problems)
    numbers = ", ".join(f"{kind} {counts[kind]}" for kind in KINDS)
    num_failed = sum(bool(one.problems) for one in judged)
    longest = max((one.came.seconds for one in judged), default=0.0)
    head = [
        "# Bad days and hostile input",
        "`python -m tests.hostile`: in each case the user must see the words named, and nothing of theirs may be lost.",
        f"{len(judged)} cases, {num_failed} failed. Problems by kind: {numbers}. The longest took {longest:.1f} s.",
    ]
    groups = list(dict.fromkeys(one.group for one in judged))
    sections = [_section(group, [one for one in judged if one.group == group]) for group in groups]
    return "\n\n".join([*head, *sections]) + "\n"


def _section(group: str, judged: Sequence[Judged]) -> str:
    rows = [
        ["what is done", "the user must see", "exit code", "what came", ""],
        ["---"] * 5,
        *(
            [
                one.case.name,
                "; ".join(one.case.must_see),
                str(one.came.exit_code),
                _what_came(one),
                "; ".join(problem.words for problem in one.problems) or "as it must",
            ]
            for one in judged
        ),
    ]
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([f"## {group} ({len(judged)})", "", *lines])


def _what_came(one: Judged) -> str:
    """The line that holds the first of the words that must be seen, else the last one that was said."""
    lines = [line.strip() for line in one.came.said.splitlines() if line.strip() and not line.startswith("---")]
    wanted = next(iter(one.case.must_see), None)
    found = [line for line in lines if wanted and wanted in line]
    return (found or lines[-1:] or ["(nothing)"])[0]


def _cell(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= WIDEST_CELL else f"{text[:WIDEST_CELL]}…"
