"""`report.html` of generated answers: how long they are, why they ended, what was left out, and some of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf.rejection.charts import histogram
from openrlhf.rejection.records import Row, StoredRows
from openrlhf.rejection.report import MAX_PROMPTS, REPORT, Page, Sample, ShownAnswer, text_of_prompt, write_page


def write_generation_report(output: Path, stats: Mapping[str, Any], prompt_ids: Iterable[str], subtitle: str) -> None:
    """One pass over the answers, whose texts stay on the disk but for those to the prompts of the smallest hashes.

    These are spread over all, and the same in any order of the rows.
    """
    lengths: defaultdict[str, list[int]] = defaultdict(list)
    shown: dict[str, list[Row]] = {key: [] for key in nsmallest(MAX_PROMPTS, prompt_ids)}
    for row in StoredRows(output):
        if row["num_tokens"] is not None:
            lengths[str(row["finish_reason"])].append(row["num_tokens"])
        if row["prompt_id"] in shown:
            shown[row["prompt_id"]].append(row)
    of_reason = {reason: np.array(of_one) for reason, of_one in sorted(lengths.items(), reverse=True)}
    charts = [("Lengths, by how answers ended", histogram(of_reason, "tokens"))] if of_reason else []
    write_page(output / REPORT, Page("Answers", subtitle, list(_told(stats)), charts, _samples(shown)))


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


def _samples(shown: Mapping[str, list[Row]]) -> Iterator[Sample]:
    for rows in shown.values():
        rows.sort(key=lambda row: row["sample_index"])
        yield Sample(text_of_prompt(rows[0]), [ShownAnswer(row["response"], _remark(row)) for row in rows])


def _remark(row: Row) -> str:
    tokens = "" if row["num_tokens"] is None else f" · {row['num_tokens']:,} tokens"
    return f"answer {row['sample_index']} · {row['finish_reason']}{tokens}"
