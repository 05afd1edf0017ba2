"""`report.html`, which each stage leaves: one file that needs nothing beside it. All texts in it are escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openrlhf.atomic_file import replace_file
from openrlhf.rejection.candidates import Candidates
from openrlhf.rejection.charts import Point, curves, histogram
from openrlhf.rejection.records import Row, StoredRows

REPORT = "report.html"
MAX_PROMPTS, MAX_ANSWERS = 40, 16  # shown on a page
MAX_CHARACTERS = 6000  # of a text; what is cut is said


class ShownAnswer(NamedTuple):
    """An answer, and what is said of it in a line above it."""

    text: str
    remark: str
    is_kept: bool = False


class Sample(NamedTuple):
    """A prompt with answers."""

    prompt: str
    answers: Sequence[ShownAnswer]


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
        facts: names and values, a table.
        charts: headline and content of each: SVG text from `charts.py`, or a `table`.
        samples: to leaf through.
    """

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    charts: Sequence[tuple[str, str]] = ()
    samples: Iterable[Sample] = field(default_factory=tuple)


def write_page(path: Path, page: Page) -> None:
    """Writes the page in the place of the file."""
    frame = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    cards = [("Numbers", table(page.facts)), *page.charts]
    content = {
        "title": escape(page.title),
        "subtitle": escape(page.subtitle),
        "cards": "".join(f'<section class="card"><h2>{escape(head)}</h2>{body}</section>' for head, body in cards),
        "samples": "".join(map(_article, page.samples)),
    }
    filled = re.sub(r"\{\{(\w+)\}\}", lambda place: content[place[1]], frame)
    replace_file(path, filled.encode("utf-8", "replace"))


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of texts, as HTML."""
    cells = ("".join(f"<td>{escape(text)}</td>" for text in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def told_passes(statistics: Mapping[str, Any]) -> str:
    """`pass@1 35.0% (33.1 to 36.9), …`: what `pass_statistics` has found, in a line."""
    return ", ".join(
        f"{name} {statistics[name]:.1%} ({100 * low:.1f} to {100 * high:.1f})"
        for name, (low, high) in statistics["intervals"].items()
    )


def pass_curve(statistics: Mapping[str, Any]) -> str:
    """pass@k over k, as SVG."""
    points = [
        Point(float(name.partition("@")[2]), statistics[name], *interval)
        for name, interval in statistics["intervals"].items()
    ]
    return curves({"pass@k": points}, "k")


def charts_of(
    candidates: Candidates, statistics: Mapping[str, Any], kinds: Mapping[str, np.ndarray]
) -> list[tuple[str, str]]:
    """pass@k, and the rewards and lengths of answers by kind, a name → (N,) bool."""
    rewards = {name: candidates.reward[which] for name, which in kinds.items()}
    lengths = {name: candidates.length[which] for name, which in kinds.items()}
    return [
        ("pass@k", pass_curve(statistics)),
        ("Rewards", histogram(rewards, "reward")),
        ("Lengths, shares of each kind", histogram(lengths, candidates.length_unit, as_shares=True)),
    ]


def samples_of(
    source: StoredRows, candidates: Candidates, remark: Callable[[int, Row], str], is_kept: np.ndarray
) -> Iterator[Sample]:
    """Prompts spread over all, each with its answers, the best first.

    Args:
        remark: said of an answer, by its number and its row.
        is_kept: (N,) bool.
    """
    prompts = np.unique(np.linspace(0, len(candidates.prompt_ids) - 1, MAX_PROMPTS).astype(int))
    numbers = candidates.best_first(np.flatnonzero(np.isin(candidates.prompt, prompts)))
    for prompt in prompts:
        of_prompt = numbers[candidates.prompt[numbers] == prompt].tolist()
        rows = list(source.at(map(candidates.place, of_prompt)))
        answers = [
            ShownAnswer(row["response"], remark(number, row), bool(is_kept[number]))
            for number, row in zip(of_prompt, rows, strict=True)
        ]
        yield Sample(text_of_prompt(rows[0]), answers)


def text_of_prompt(row: Row) -> str:
    """The row's prompt, messages as their roles and contents."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def _article(sample: Sample) -> str:
    parts = [f'<p>prompt</p><pre class="prompt">{_shown(sample.prompt)}</pre>']
    for answer in sample.answers[:MAX_ANSWERS]:
        kept = ' class="kept"' if answer.is_kept else ""
        parts.append(f"<p>{escape(answer.remark)}</p><pre{kept}>{_shown(answer.text)}</pre>")
    if (more := len(sample.answers) - MAX_ANSWERS) > 0:
        parts.append(f"<p>and {more:,} more</p>")
    return f"<article>{''.join(parts)}</article>"


def _shown(text: str) -> str:
    cut = f"\n… and {len(text) - MAX_CHARACTERS:,} characters more" if len(text) > MAX_CHARACTERS else ""
    return escape(text[:MAX_CHARACTERS]) + cut
