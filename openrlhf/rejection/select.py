"""Scored answers → the rows that are trained on, with their provenance, a report and counts of all that is left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openrlhf.atomic_file import keep_aside, remove_leftovers, replace_file, replacing
from openrlhf.config import SelectConfig, SelectSettings
from openrlhf.config.disk import local_path
from openrlhf.errors import UserError
from openrlhf.rejection.answer import answer_of
from openrlhf.rejection.candidates import Candidates, prompt_id_of, read_candidates
from openrlhf.rejection.full_disk import keeps_on_a_full_disk
from openrlhf.rejection.policies import REASONS, Selection, pass_reward, select_answers
from openrlhf.rejection.records import (
    STATS,
    Identity,
    Row,
    StoredRows,
    content_of,
    differences,
    settings_of,
    stats_in,
)
from openrlhf.rejection.report import REPORT, Page, charts_of, samples_of, told_passes, write_page
from openrlhf.rejection.statistics import answer_statistics, mean_reward


class _Output(NamedTuple):
    rows: Path
    stats: Path
    report: Path


@keeps_on_a_full_disk
def select(config: SelectConfig) -> dict[str, Any]:
    """Writes the selected rows to `select.output`, `report.html` and `stats.json` beside it; returns the statistics.

    A selection that is finished is not made again.

    Raises UserError where the input is empty or no output of `score`, nothing is selected, the disk is full, or the
    output is the file of somebody else, or of another selection.
    """
    settings = config.select
    source = StoredRows(local_path(settings.input))
    identity = _identity(config, source.path)
    output = _output_of(local_path(settings.output))
    if (finished := _finished(output, identity)) is not None:
        print(f"{output.rows} is this selection already: {finished['num_rows']:,} rows", flush=True)
        return finished
    candidates = read_candidates(source, with_equations=settings.dedupe == "equations")
    num_torn_lines = source.num_torn
    if not len(candidates):
        raise UserError(f"{source.path} holds no answer: give the folder that score has written.")
    like = None if settings.like is None else np.array(list(_lengths_of(local_path(settings.like), candidates)))
    selection = select_answers(candidates, settings, like)
    if not len(selection.picked):
        counts = ", ".join(f"{reason} {count:,}" for reason, count in selection.left_out().items())
        raise UserError(
            f"--select.policy {settings.policy} selects none of the {len(candidates):,} answers of {source.path}: "
            f"{counts}. Change the settings of --select."
        )
    stats = _statistics(candidates, selection, settings, output, identity) | {"num_torn_lines": num_torn_lines}
    _write(output, source, candidates, selection, settings, stats)
    _tell(output, stats, like)
    return stats


def control_of(config: SelectConfig, output: str) -> SelectConfig:
    """The settings of the random control of a selection: as many answers, drawn whatever their rewards."""
    control = dataclasses.replace(
        config.select,
        output=output,
        policy="random",
        like=config.select.output,
        k=None,
        min_reward=None,
        pass_reward=pass_reward(config.select),
        pass_rate_min=0.0,
        pass_rate_max=1.0,
    )
    return dataclasses.replace(config, select=control)


def _identity(config: SelectConfig, source: Path) -> Identity:
    inputs = {"--select.input": content_of(source)}
    if config.select.like is not None:
        inputs["--select.like"] = content_of(local_path(config.select.like))
    return Identity("select", settings_of(config), inputs=inputs)


def _output_of(rows: Path) -> _Output:
    """Other selections of a folder have reports of their own names."""
    rows.parent.mkdir(parents=True, exist_ok=True)
    plain = _Output(rows, rows.with_name(STATS), rows.with_name(REPORT))
    named = _Output(rows, rows.with_name(f"{rows.stem}.{STATS}"), rows.with_name(f"{rows.stem}.{REPORT}"))
    is_taken = plain.stats.exists() and (stats_in(plain.stats) or {}).get("output") != rows.name
    return named if is_taken or named.stats.exists() else plain


def _finished(output: _Output, identity: Identity) -> dict[str, Any] | None:
    """The statistics of this selection, where it is there as it was made. Raises UserError where something else is."""
    if not output.rows.exists():
        return None
    stats = stats_in(output.stats)
    if stats is None or stats.get("output") != output.rows.name:
        raise UserError(f"--select.output {output.rows} is no selection, and would be lost: give another name.")
    if changes := differences(stats, identity):
        raise UserError(f"--select.output {output.rows} is another selection: {'; '.join(changes)}. Give another name.")
    if output.rows.stat().st_size == stats["size_bytes"]:
        return stats
    print(
        f"{output.rows} has changed since it was selected: it goes aside, as *.previous, and is made again", flush=True
    )
    keep_aside(output.rows)
    return None


def _lengths_of(path: Path, candidates: Candidates) -> Iterator[int]:
    """The lengths of a selection's answers, in the unit of the candidates."""
    for row in StoredRows(path):
        answer = row["messages"][-1]["content"] if "messages" in row else row.get("completion")
        if not isinstance(answer, str) or not isinstance(row.get("provenance"), dict):
            raise UserError(f"--select.like {path} is no selection of answers: give the output of another select.")
        num_tokens = row["provenance"].get("num_tokens")
        yield len(answer) if candidates.length_unit == "characters" or num_tokens is None else num_tokens


def _statistics(
    candidates: Candidates, selection: Selection, settings: SelectSettings, output: _Output, identity: Identity
) -> dict[str, Any]:
    kept = selection.is_kept
    return {
        "output": output.rows.name,
        "num_rows": len(selection.picked),
        **answer_statistics(candidates, pass_reward(settings), kept),
        "num_kept": int(kept.sum()),
        "num_prompts_kept": len(np.unique(candidates.prompt[kept])),
        "left_out": selection.left_out(),
        "mean_reward_kept": mean_reward(candidates.reward[kept]),
        "facts": identity.facts(),
    }


def _write(
    output: _Output,
    source: StoredRows,
    candidates: Candidates,
    selection: Selection,
    settings: SelectSettings,
    stats: dict[str, Any],
) -> None:
    """The rows take their place last: with the statistics alone the selection is made again."""
    for path in output:
        remove_leftovers(path)
    places = map(candidates.place, selection.picked.reshape(-1).tolist())
    rows = source.at(places)
    with replacing(output.rows) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                made = _pair(row, next(rows), settings) if settings.policy == "pairs" else _answer(row, settings)
                file.write(json.dumps(made) + "\n")
        stats["size_bytes"] = temporary.stat().st_size
        write_page(output.report, _page(source, candidates, selection, settings, stats))
        replace_file(output.stats, json.dumps(stats, indent=1) + "\n")


def _answer(row: Row, settings: SelectSettings) -> Row:
    """A row as train_sft takes it without a flag."""
    prompt, answer = row["prompt"], answer_of(row)
    trained = {"prompt": prompt, "completion": answer} if isinstance(prompt, str) else {"messages": [*prompt, *answer]}
    return {**trained, **_tools(row), "provenance": _provenance(row, settings)}


def _pair(chosen: Row, rejected: Row, settings: SelectSettings) -> Row:
    """A row as train_dpo takes it without a flag."""
    return {
        "prompt": chosen["prompt"],
        "chosen": answer_of(chosen),
        "rejected": answer_of(rejected),
        "margin": chosen["reward"] - rejected["reward"],
        **_tools(chosen),
        "provenance": {"chosen": _provenance(chosen, settings), "rejected": _provenance(rejected, settings)},
    }


def _tools(row: Row) -> Row:
    return {"tools": row["tools"]} if row.get("tools") else {}


def _provenance(row: Row, settings: SelectSettings) -> Row:
    names = ("sample_index", "seed", "model", "reward", "num_tokens")
    return {"prompt_id": prompt_id_of(row), **{name: row.get(name) for name in names}, "iteration": settings.iteration}


def _page(
    source: StoredRows,
    candidates: Candidates,
    selection: Selection,
    settings: SelectSettings,
    stats: Mapping[str, Any],
) -> Page:
    kept = selection.is_kept

    def remark(number: int, row: Row) -> str:
        return f"reward {row['reward']} · {REASONS[selection.reason[number]]}"

    return Page(
        f"Selected by {settings.policy}",
        f"{settings.output} of {settings.input}",
        list(_told(stats)),
        charts_of(candidates, stats, {"kept": kept, "left out": ~kept}),
        samples_of(source, candidates, remark, kept),
    )


def _told(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a selection is, as names and values."""
    yield "rows", f"{stats['num_rows']:,}"
    yield "answers", f"{stats['num_kept']:,} kept of {stats['num_responses']:,}"
    yield "prompts", f"{stats['num_prompts_kept']:,} kept of {stats['num_prompts']:,}"
    for reason, count in stats["left_out"].items():
        yield f"left out: {reason}", f"{count:,}"
    if stats["num_torn_lines"]:
        yield "left out: lines that are no rows", f"{stats['num_torn_lines']:,}"
    yield f"passes (reward {stats['pass_reward']:g} or more)", told_passes(stats)
    for name, words in (("mean_reward", "mean reward"), ("mean_reward_kept", "mean reward of the kept")):
        yield words, "none" if stats[name] is None else f"{stats[name]:.4g}"
    for name, words in (("kept", "length of the kept"), ("left_out", "length of the left out")):
        lengths = stats["lengths"][name]
        if lengths["num_responses"]:
            yield words, f"mean {lengths['mean']:.1f}, median {lengths['median']:.0f} {stats['length_unit']}"


def _tell(output: _Output, stats: Mapping[str, Any], like: np.ndarray | None) -> None:
    for name, value in _told(stats):
        print(f"{name:<36} {value}")
    if like is not None and len(like) > stats["num_rows"]:
        print(f"There are no {len(like):,} answers to draw: the control is smaller than the selection.")
    print(f"wrote {', '.join(map(str, output))}", flush=True)
