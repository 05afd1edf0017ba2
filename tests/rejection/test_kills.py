"""Rejection sampling is killed, started again and killed: `python -m tests.rejection.kills`, its short form."""

from __future__ import annotations

from pathlib import Path

from tests.rejection.kills import campaign


def test_runs_that_are_killed_end_as_those_that_are_not(tmp_path: Path) -> None:
    accounts = list(campaign(tmp_path, num_kills=5, seed=3, num_iterations=1))
    assert [problem for account in accounts for problem in account.problems] == []
    assert sum(account.num_kills for account in accounts) == 5
