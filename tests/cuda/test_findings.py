"""What was found wrong on GPU machines is right. `tests.cuda.against_old` shows each case fail where it was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.findings import CASES, Case
from tests.helpers.ranks import RankPool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rank_of_its_own():
    """These cases would leave other tests a process that has seen a GPU."""
    with RankPool(1) as pool:
        yield pool


@pytest.mark.parametrize("case", CASES, ids=str)
def test_finding(request, tmp_path, case: Case):
    pool = request.getfixturevalue("rank_of_its_own" if case.ranks == 1 else "four_ranks")
    if reason := pool.run(case.why_not_shown, tmp_path, ROOT)[0]:
        pytest.skip(reason)
