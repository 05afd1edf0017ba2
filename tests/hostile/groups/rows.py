"""Rows and data files that cannot be trained."""

from __future__ import annotations

from tests.hostile.case import Case

CASES = (
    Case(
        "a data file that ends in the middle of a row",
        lambda w: w.run(data__dataset=w.write("rows.jsonl", '{"question": "a", "answer": "b"}\n{"question": "a", ')),
        must_see=("rows.jsonl:2",),
        in_suite=True,
    ),
)
