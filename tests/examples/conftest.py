"""The examples, as modules and as scripts."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def examples():
    """The folder of the examples."""
    return EXAMPLES


@pytest.fixture
def example(monkeypatch):
    """A function that imports an example by its path below the folder: example("quickstart/make_data")."""

    def load(name):
        path = EXAMPLES / name
        monkeypatch.syspath_prepend(str(path.parent))
        return importlib.import_module(path.name)

    return load


@pytest.fixture
def quickstart_data(tmp_path, example):
    """A folder with the quickstart's data."""
    example("quickstart/make_data").main(tmp_path)
    return tmp_path
