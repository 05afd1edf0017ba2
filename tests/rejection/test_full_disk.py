"""A disk that is full at any byte: each stage says so in a sentence, and goes on with what is there once there is room.

A bound of the operating system on the size of a file stands for the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openrlhf.config import ScoreConfig, ScoreSettings, SelectConfig, SelectSettings
from openrlhf.errors import UserError
from openrlhf.rejection.generate import generate
from openrlhf.rejection.iterate import rejection_sampling
from openrlhf.rejection.score import score
from openrlhf.rejection.select import select
from tests.helpers.file_limit import no_file_beyond
from tests.rejection.scored import answer, write
from tests.rejection.stand_in import StandIn, generate_config, stored
from tests.rejection.test_iterate import config_of, stand_ins  # noqa: F401  a fixture

SIZES_BYTES = (0, 150, 700, 1500, 2200, 4000, 8000)


def stages(tmp_path: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """By name, where it leaves its rows, and the stage."""
    rows = [answer(f"p{n % 5}", f"text {n}", float(n % 3), n, label="7") for n in range(20)]
    scored, out = str(write(tmp_path / "scored.jsonl", rows)), tmp_path / "out"
    to_generate = generate_config(tmp_path, [{"prompt": f"question {number}"} for number in range(10)])
    to_score = ScoreConfig(score=ScoreSettings(scored, str(out), "exact"))
    to_select = SelectConfig(select=SelectSettings(scored, str(out / "selected.jsonl"), "threshold", min_reward=0.0))
    recipe, last = config_of(tmp_path), tmp_path / "run" / "iteration_2"
    return {
        "generate": (out, lambda: generate(to_generate, StandIn())),
        "score": (out, lambda: score(to_score)),
        "select": (out / "selected.jsonl", lambda: select(to_select)),
        "rejection_sampling": (last / "selected" / "selected.jsonl", lambda: rejection_sampling(recipe)),
    }


def told(stage: Callable[[], Any], size_bytes: int) -> str:
    """What it says where no file may be larger; empty where it ends well."""
    try:
        with no_file_beyond(size_bytes):
            stage()
    except (UserError, SystemExit) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["generate", "score", "select", "rejection_sampling"])
def test_a_full_disk_is_told_and_gone_on_with(tmp_path: Path, name: str) -> None:
    (tmp_path / "unbroken").mkdir()
    rows, stage = stages(tmp_path)[name]
    said = [told(stage, size_bytes) for size_bytes in SIZES_BYTES]
    assert sum("cannot be written: File too large" in one for one in said) >= 4
    assert {one for one in said if "cannot be written: File too large" not in one} <= {"", "1"}  # 1: of a training
    stats = stage()
    unbroken_rows, unbroken = stages(tmp_path / "unbroken")[name]
    assert stats == unbroken()
    assert texts_of(rows) == texts_of(unbroken_rows) != []


def texts_of(path: Path) -> list[str]:
    return sorted(row["completion"] if "completion" in row else row["response"] for row in stored(path))
