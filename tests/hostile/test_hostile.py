"""The cross-section of the bad days that the test command runs; `python -m tests.hostile` runs all of them."""

from __future__ import annotations

import pytest

from tests.hostile.groups import all_cases
from tests.hostile.workspace import Originals

IN_SUITE = {f"{group}: {case.name}": (group, case) for group, case in all_cases() if case.in_suite}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return Originals(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("name", IN_SUITE)
def test_the_user_sees_what_must_be_seen(originals, name):
    judged = originals.judge(*IN_SUITE[name])
    assert judged.problems == (), judged.came.said[-3000:]


def test_every_case_has_a_name_of_its_own():
    names = [(group, case.name) for group, case in all_cases()]
    assert len(set(names)) == len(names)
