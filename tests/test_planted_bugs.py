"""The planted bugs fit the code as it stands: every text to change is there once, every named test exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.planted import all_bugs

ROOT = Path(__file__).parents[1]
BUGS = all_bugs()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_planted(bug):
    bug.planted_in(ROOT)


@pytest.mark.parametrize("test", sorted({test for bug in BUGS for test in bug.tests}))
def test_a_named_test_exists(test):
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not name or name.partition("[")[0] in functions


def test_there_are_enough_and_each_has_its_own_name():
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 40
