"""A folder with the least that a valid configuration names: a model folder and a data file."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def good_flags(tmp_path, monkeypatch):
    """Flags of a configuration without problems, run from an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input": "a", "output": "b"}) + "\n")
    return ["--model.model_name_or_path", "./model", "--data.dataset", "./rows.jsonl"]
