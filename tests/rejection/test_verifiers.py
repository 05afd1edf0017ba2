"""A task set of verifiers as a reward: the task that has a row's prompt judges the answer by its own rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf.config import ScoreConfig, parse_config
from openrlhf.errors import UserError
from openrlhf.rejection.records import StoredRows
from openrlhf.rejection.score import score

pytest.importorskip("verifiers")

TASKS = """
import verifiers.v1 as vf

class SumData(vf.TaskData):
    answer: str

class SumTask(vf.Task[SumData]):
    @vf.reward(weight=2.0)
    async def correct(self, task, trace) -> float:
        return float(trace.nodes[-1].message.content.strip() == task.answer)

    @vf.reward
    async def polite(self, trace) -> float:
        if "crash" in trace.nodes[-1].message.content:
            raise ValueError("no judgement")
        return 0.25 * ("please" in trace.nodes[-1].message.content)

    @vf.reward
    async def needs_a_box(self, runtime) -> float:
        return 100.0

class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
    INFINITE = {infinite}

    def load(self):
        for a in range(3):
            yield SumTask(SumData(prompt=f"{{a}}+1?", system_prompt={system}, answer=str(a + 1)), self.config.task)

__all__ = ["Sums"]
"""


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """scored(rows): their rewards and reasons, by the task set `tiny_sums`."""

    def call(rows: list[dict[str, Any]], system: str | None = None, infinite: bool = False) -> list[tuple]:
        (tmp_path / "tiny_sums.py").write_text(TASKS.format(system=repr(system), infinite=infinite))
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = ["--score.input", str(tmp_path / "rows.jsonl"), "--score.output", str(tmp_path / "scores")]
        score(parse_config(ScoreConfig, [*given, "--score.reward", "verifiers:me/tiny-sums", "--score.workers", "1"]))
        found = {row["response"]: (row["reward"], row["reason"]) for row in StoredRows(tmp_path / "scores")}
        return [found[row["response"]] for row in rows]

    monkeypatch.syspath_prepend(str(tmp_path))
    return call


def test_the_task_of_the_prompt_judges_by_its_weighted_rewards(scored: Any) -> None:
    answers = {"2": "1+1?", " 3 ": "2+1?", "4": "2+1?", "3, please": "2+1?", "5": "9+1?", "crash": "0+1?"}
    found = dict(zip(answers, scored([{"prompt": p, "response": r} for r, p in answers.items()]), strict=True))
    assert [found[text][0] for text in ("2", " 3 ", "4", "3, please")] == [2.0, 2.0, 0.0, 0.25]
    assert found["5"] == (None, "me/tiny-sums: no task has this prompt")
    assert found["crash"][0] is None
    assert "no judgement" in found["crash"][1]


def test_messages_are_known_by_the_text_of_their_task(scored: Any) -> None:
    system, user = {"role": "system", "content": "Add."}, {"role": "user", "content": "1+1?"}
    rows = [{"prompt": [system, user], "response": "2"}, {"prompt": [user], "response": "2 "}]
    assert scored(rows, system="Add.") == [(2.0, None), (None, "me/tiny-sums: no task has this prompt")]


def test_a_task_set_that_cannot_serve_is_told(scored: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "1+1?", "response": "2"}]
    with pytest.raises(UserError, match="verifiers:me/tiny-sums: the task set has no tasks, or tasks without end"):
        scored(rows, infinite=True)
    given = ["--score.input", str(tmp_path / "rows.jsonl"), "--score.output", str(tmp_path / "other")]
    with pytest.raises(UserError, match="verifiers:none: the task set cannot be loaded: ModuleNotFoundError"):
        score(parse_config(ScoreConfig, [*given, "--score.reward", "verifiers:none"]))
