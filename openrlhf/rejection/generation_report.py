"""`report.html` of generated answers: how long they are, why they ended, what was left out, and some of them."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf.rejection.charts import histogram
from openrlhf.rejection.records import Row, StoredRows
from openrlhf.rejection.report import MAX_PROMPTS, REPORT, Page, Sample, ShownAnswer, text_of_prompt, write_page


def write_generation_report(output: Path, stats: Mapping[str, Any], subtitle: str) -> None:
    """One pass over the answers, whose texts stay on the disk but for those that are shown."""
    lengths: defaultdict[str, list[int]] = defaultdict(list)
    shown = _ShownPrompts()
    for row in StoredRows(output):
        if row["num_tokens"] is not None:
            lengths[str(row["finish_reason"])].append(row["num_tokens"])
        shown.add(row)
    of_reason = {reason: np.array(of_one) for reason, of_one in sorted(lengths.items(), reverse=True)}
    charts = [("Lengths, by how answers ended", histogram(of_reason, "tokens"))] if of_reason else []
    write_page(output / REPORT, Page("Answers", subtitle, list(_told(stats)), charts, shown.samples()))


def _told(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "answers", f"{stats['num_generations']:,} to {stats['num_prompts']:,} prompts"
    if stats["mean_tokens"] is not None:
        yield "tokens", f"{stats['num_tokens']:,}, {stats['mean_tokens']:,.1f} an answer"
    for reason, count in stats["finish_reasons"].items():
        yield f"ended by {reason}", f"{count:,}"
    for reason, count in stats["left_out"].items():
        yield f"left out: {reason}", f"{count:,} prompts"
    if stats["num_torn_lines"]:
        yield "torn lines, stepped over", f"{stats['num_torn_lines']:,}"


class _ShownPrompts:
    """The answers to the prompts of the smallest hashes: spread over all, the same in any order of the rows."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Row]] = {}
        self._ids: list[str] = []  # sorted

    def add(self, row: Row) -> None:
        key = row["prompt_id"]
        if key not in self._rows:
            if len(self._ids) == MAX_PROMPTS and key > self._ids[-1]:
                return
            insort(self._ids, key)
            self._rows[key] = []
            for gone in self._ids[MAX_PROMPTS:]:
                del self._rows[gone]
            del self._ids[MAX_PROMPTS:]
        self._rows[key].append(row)

    def samples(self) -> Iterator[Sample]:
        for key in self._ids:
            rows = sorted(self._rows[key], key=lambda row: row["sample_index"])
            yield Sample(text_of_prompt(rows[0]), [ShownAnswer(row["response"], _remark(row)) for row in rows])


def _remark(row: Row) -> str:
    tokens = "" if row["num_tokens"] is None else f" · {row['num_tokens']:,} tokens"
    return f"answer {row['sample_index']} · {row['finish_reason']}{tokens}"
