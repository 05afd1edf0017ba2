"""Cases of a parametrized test that the test command leaves out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow(cases: Iterable[Any]) -> list[Any]:
    """For `python -m tests.slow`. A case of several values is a tuple."""
    values = (case if type(case) is tuple else (case,) for case in cases)
    return [pytest.param(*each, marks=pytest.mark.slow) for each in values]
