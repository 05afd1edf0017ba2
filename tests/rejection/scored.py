"""Scored answers for tests: made, written, read, and picked the slow and obvious way."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from openrlhf.config import SelectSettings
from openrlhf.rejection.candidates import Candidates, read_candidates
from openrlhf.rejection.equations import equations_of
from openrlhf.rejection.records import StoredRows

TEXTS = ("1+1=2", " 1+1=2", "so 1+1=2", "2+1=3", "2+1=3 and 1+1=2", "no sums", "other words", "  ")


def answer(prompt: str = "p", response: str = "r", reward: float | None = 1.0, index: int = 0, **more: Any) -> dict:
    return {"prompt": prompt, "response": response, "reward": reward, "sample_index": index, "num_tokens": 5, **more}


@st.composite
def answers(draw: st.DrawFn) -> list[dict]:
    """Up to 24 answers to up to 4 prompts, with ties, equal texts, torn ends and missing verdicts."""
    drawn = draw(
        st.lists(
            st.tuples(
                st.sampled_from("abcd"),
                st.sampled_from(TEXTS),
                st.sampled_from([None, -1.0, 0.0, 0.5, 1.0, 1.0]),
                st.sampled_from(["stop", "stop", "stop", "length"]),
                st.integers(1, 60),
            ),
            min_size=1,
            max_size=24,
        )
    )
    return [
        answer(prompt, text, reward, index, finish_reason=end, num_tokens=length)
        for index, (prompt, text, reward, end, length) in enumerate(drawn)
    ]


settings_drawn = st.builds(
    SelectSettings,
    policy=st.sampled_from(["best_of_n", "top_k", "threshold", "pairs"]),
    k=st.sampled_from([None, 1, 2, 3]),
    min_reward=st.sampled_from([None, 0.0, 1.0]),
    max_per_prompt=st.sampled_from([None, 1, 2]),
    dedupe=st.sampled_from(["none", "text", "equations"]),
    pass_rate_min=st.sampled_from([0.0, 0.3]),
    pass_rate_max=st.sampled_from([0.7, 1.0]),
    keep_truncated=st.booleans(),
)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def candidates_of(path: Path, rows: list[dict]) -> Candidates:
    return read_candidates(StoredRows(write(path, rows)), with_equations=True)


def picked_slowly(rows: list[dict], ties: list[int], settings: SelectSettings) -> list[Any]:
    """Numbers of the picked rows (pairs of them), prompt by prompt, by loops alone."""
    by_prompt = defaultdict(list)
    for number, row in enumerate(rows):
        by_prompt[row["prompt"]].append(number)
    picked = []
    for prompt in sorted(by_prompt, key=lambda prompt: min(ties[n] for n in by_prompt[prompt])):
        judged = [n for n in by_prompt[prompt] if rows[n]["reward"] is not None]
        judged.sort(key=lambda n: (-rows[n]["reward"], ties[n]))
        picked += _of_prompt(rows, judged, settings)
    return picked


def _of_prompt(rows: list[dict], judged: list[int], settings: SelectSettings) -> list[Any]:
    least = 1.0 if settings.min_reward is None else settings.min_reward
    passed = [n for n in judged if rows[n]["reward"] >= least]
    if judged and not settings.pass_rate_min <= len(passed) / len(judged) <= settings.pass_rate_max:
        return []
    left, seen = [], set()
    for n in judged:
        text = rows[n]["response"].strip()
        key = {"none": n, "text": text, "equations": equations_of(text) or text}[settings.dedupe]
        is_low = settings.min_reward is not None and settings.policy != "pairs" and rows[n]["reward"] < least
        is_cut = rows[n]["finish_reason"] == "length" and not settings.keep_truncated
        if text and not is_low and not is_cut and key not in seen:
            left.append(n)
            seen.add(key)
    most = settings.max_per_prompt or math.inf
    k = min(settings.k or settings.max_per_prompt or 1, most)
    if settings.policy == "pairs":
        return _pairs(rows, left, settings, k)
    return left[: int(min(len(left), most if settings.policy == "threshold" else k))]


def _pairs(rows: list[dict], best_first: list[int], settings: SelectSettings, most: float) -> list[tuple[int, int]]:
    """Again and again: the best that is left with the worst that is left and has another text and a lower reward."""
    left, pairs = list(best_first), []
    while left and len(pairs) < most:
        best = left[0]
        if settings.min_reward is not None and rows[best]["reward"] < settings.min_reward:
            break
        while len(left) > 1 and rows[left[-1]]["response"].strip() == rows[best]["response"].strip():
            left.pop()
        if len(left) < 2 or not rows[best]["reward"] > rows[left[-1]]["reward"]:
            break
        pairs.append((best, left[-1]))
        left = left[1:-1]
    return pairs
