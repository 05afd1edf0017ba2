"""`report.html` of several iterations: model against control on held-out prompts, and what each selection kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openrlhf.rejection.candidates import Candidates, identity_of, read_candidates
from openrlhf.rejection.charts import Point, curves, histogram
from openrlhf.rejection.evaluation import gained, told
from openrlhf.rejection.records import Row, StoredRows, read_stats
from openrlhf.rejection.report import (
    MAX_PROMPTS,
    Page,
    Sample,
    ShownAnswer,
    table,
    text_of_prompt,
    told_passes,
    write_page,
)


class ReportedIteration(NamedTuple):
    """Where an iteration's results are; number 0 is the start.

    Attributes:
        evaluations: folders of scores of held-out answers, by who gave them: model, control.
        scores, selection: the scored answers and those that were selected; None at the start.
    """

    number: int
    evaluations: Mapping[str, Path]
    scores: Path | None = None
    selection: Path | None = None


def write_iterations(
    path: Path, iterations: Sequence[ReportedIteration], statistics: Sequence[Mapping[str, Any]], subtitle: str = ""
) -> None:
    """Writes the report. Args: statistics: of each iteration, as in `stats.json`."""
    evaluated = [{name: read_stats(scores) for name, scores in one.evaluations.items()} for one in iterations]
    facts, charts = list(gained(statistics)), list[tuple[str, str]]()
    selections: dict[str, dict[str, Any]] = {}
    for one, of_one in zip(iterations, evaluated, strict=True):
        several = {name: of for name, of in of_one.items() if len(of["intervals"]) > 1}  # pass@1 stands in the table
        facts += [(f"{named(one.number)}, {name}", told_passes(of)) for name, of in several.items()]
        if one.scores is not None and one.selection is not None:
            selections[named(one.number)] = read_stats(one.selection.parent)
            charts += _selection_charts(one.number, read_candidates(StoredRows(one.scores)), one.selection)
    if selections:
        charts.insert(0, ("Answers to train on: kept, and left out", table(_selection_rows(selections))))
    passes = _pass_charts([one.number for one in iterations], evaluated)
    charts = [("By iteration", table(_iteration_rows(statistics))), *passes, *charts]
    write_page(path, Page("Rejection sampling, by iteration", subtitle, facts, charts, _samples(iterations)))


def named(number: int) -> str:
    return f"iteration {number}" if number else "start"


def _iteration_rows(statistics: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Rows, shares and differences; the iterations are the columns."""
    columns = [told(one) for one in statistics]
    yield ["", *(named(one["iteration"]) for one in statistics)]
    for name in dict.fromkeys(name for column in columns for name in column):
        yield [name, *(column.get(name, "") for column in columns)]


def _pass_charts(
    numbers: Sequence[int], evaluated: Sequence[Mapping[str, Mapping[str, Any]]]
) -> Iterator[tuple[str, str]]:
    """A chart for each k; a curve for the model and one for the control."""
    names = list(dict.fromkeys(name for statistics in evaluated for name in statistics))
    measures = list(dict.fromkeys(key for one in evaluated for of in one.values() for key in of["intervals"]))
    for measure in measures:
        series: dict[str, list[Point]] = {name: [] for name in names}
        for number, statistics in zip(numbers, evaluated, strict=True):
            for name, of in statistics.items():
                if measure in of["intervals"]:
                    series[name].append(Point(number, of[measure], *of["intervals"][measure]))
        yield f"{measure} on held-out prompts", curves(series, "iteration")


def _selection_rows(selections: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """Counts by iteration, which are the columns."""
    yield ["", *selections]
    yield ["pass@1", *(f"{one['pass@1']:.1%}" for one in selections.values())]
    for key, words in (("num_responses", "answers"), ("num_kept", "kept")):
        yield [words, *(f"{one[key]:,}" for one in selections.values())]
    for reason in dict.fromkeys(reason for one in selections.values() for reason in one["left_out"]):
        yield [reason, *(f"{one['left_out'].get(reason, 0):,}" for one in selections.values())]


def _selection_charts(number: int, candidates: Candidates, selection: Path) -> Iterator[tuple[str, str]]:
    kept = np.isin(candidates.tie, np.array([_identity_of(row) for row in StoredRows(selection)], np.uint64))
    split = {"kept": kept, "left out": ~kept}
    rewards = {name: candidates.reward[which] for name, which in split.items()}
    lengths = {name: candidates.length[which] for name, which in split.items()}
    yield f"Rewards, {named(number)}", histogram(rewards, "reward")
    yield (
        f"Lengths, {named(number)}: shares of the kept and of the left out",
        histogram(lengths, candidates.length_unit, as_shares=True),
    )


def _identity_of(row: Row) -> int:
    """That of the answer which a selected row was made of."""
    response = row["messages"][-1]["content"] if "messages" in row else row["completion"]
    return identity_of({**row["provenance"], "response": response})


def _samples(iterations: Sequence[ReportedIteration]) -> Iterator[Sample]:
    """Held-out prompts, each with the first answer of every model."""
    answers: dict[str, list[ShownAnswer]] = {}
    prompts: dict[str, str] = {}
    for one in iterations:
        for name, scores in one.evaluations.items():
            for row in StoredRows(scores):
                key = row["prompt_id"]
                if row["sample_index"] or (key not in prompts and len(prompts) == MAX_PROMPTS):
                    continue
                prompts.setdefault(key, text_of_prompt(row))
                verdict = "no verdict" if row["reward"] is None else f"reward {row['reward']:g}"
                shown = ShownAnswer(row["response"], f"{named(one.number)}, {name}: {verdict}", name == "model")
                answers.setdefault(key, []).append(shown)
    for key, prompt in prompts.items():
        yield Sample(prompt, answers[key])
