"""`report.html` of several iterations: model against control on held-out prompts, and what each selection kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf.config import SelectSettings
from openrlhf.rejection.candidates import identity_of, read_candidates
from openrlhf.rejection.charts import Point, curves, histogram
from openrlhf.rejection.evaluation import gained, told
from openrlhf.rejection.plan import Plan
from openrlhf.rejection.records import Row, StoredRows, read_stats
from openrlhf.rejection.report import (
    MAX_PROMPTS,
    REPORT,
    Page,
    Sample,
    ShownAnswer,
    table,
    text_of_prompt,
    told_passes,
    write_page,
)


def write_iterations(plan: Plan, statistics: Sequence[Mapping[str, Any]]) -> None:
    """Writes the report. Args: statistics: of each iteration, as in `stats.json`."""
    evaluations = [_evaluations(plan.folder(one["iteration"]), one) for one in statistics]
    evaluated = [{name: read_stats(scores) for name, scores in of_one.items()} for of_one in evaluations]
    facts, charts = list(gained(statistics)), list[tuple[str, str]]()
    selections: dict[str, dict[str, Any]] = {}
    for number, of_one in enumerate(evaluated):
        several = {name: of for name, of in of_one.items() if len(of["intervals"]) > 1}  # pass@1 stands in the table
        facts += [(f"{named(number)}, {name}", told_passes(of)) for name, of in several.items()]
        if number:
            selections[named(number)] = read_stats(plan.folder(number) / "selected")
            charts += _selection_charts(number, plan.select(number).select)
    charts.insert(0, ("Answers to train on: kept, and left out", table(_selection_rows(selections))))
    charts = [("By iteration", table(_iteration_rows(statistics))), *_pass_charts(evaluated), *charts]
    page = Page("Rejection sampling, by iteration", str(plan.output), facts, charts, _samples(evaluations))
    write_page(plan.output / REPORT, page)


def _evaluations(folder: Path, found: Mapping[str, Any]) -> dict[str, Path]:
    """The scores of held-out answers, by who gave them."""
    folders = {"model": folder / "evaluation" / "scores", "control": folder / "control_evaluation" / "scores"}
    return {name: scores for name, scores in folders.items() if name in found}


def named(number: int) -> str:
    return f"iteration {number}" if number else "start"


def _iteration_rows(statistics: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Rows, shares and differences; the iterations are the columns."""
    columns = [told(one) for one in statistics]
    yield ["", *(named(one["iteration"]) for one in statistics)]
    for name in dict.fromkeys(name for column in columns for name in column):
        yield [name, *(column.get(name, "") for column in columns)]


def _pass_charts(evaluated: Sequence[Mapping[str, Mapping[str, Any]]]) -> Iterator[tuple[str, str]]:
    """A chart for each k; a curve for the model and one for the control."""
    names = list(dict.fromkeys(name for statistics in evaluated for name in statistics))
    measures = list(dict.fromkeys(key for one in evaluated for of in one.values() for key in of["intervals"]))
    for measure in measures:
        series: dict[str, list[Point]] = {name: [] for name in names}
        for number, statistics in enumerate(evaluated):
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


def _selection_charts(number: int, settings: SelectSettings) -> Iterator[tuple[str, str]]:
    candidates, selection = read_candidates(StoredRows(Path(settings.input))), StoredRows(Path(settings.output))
    kept = np.isin(candidates.tie, np.array([_identity_of(row) for row in selection], np.uint64))
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


def _samples(evaluations: Sequence[Mapping[str, Path]]) -> Iterator[Sample]:
    """Held-out prompts, each with the first answer of every model."""
    answers: dict[str, list[ShownAnswer]] = {}
    prompts: dict[str, str] = {}
    for number, of_one in enumerate(evaluations):
        for name, scores in of_one.items():
            for row in StoredRows(scores):
                key = row["prompt_id"]
                if row["sample_index"] or (key not in prompts and len(prompts) == MAX_PROMPTS):
                    continue
                prompts.setdefault(key, text_of_prompt(row))
                verdict = "no verdict" if row["reward"] is None else f"reward {row['reward']:g}"
                shown = ShownAnswer(row["response"], f"{named(number)}, {name}: {verdict}", name == "model")
                answers.setdefault(key, []).append(shown)
    for key, prompt in prompts.items():
        yield Sample(prompt, answers[key])
