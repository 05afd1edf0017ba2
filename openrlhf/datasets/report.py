"""Counts of the rows and the samples made of them, kept beside the samples and shown; and rows that are unusable."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from openrlhf.datasets.samples import PAIRS
from openrlhf.errors import UserError

FIRST_ROWS = 1000  # problems of so many rows are told together
MAX_TOLD = 40
MAX_NAMES = 5
_QUOTED = re.compile(r"""(?<!\w)(?:'[^']*'|"[^"]*")(?!\w)""")


@dataclass
class SourceReport:
    """Counts of one source.

    Attributes:
        name: as the user wrote it.
        formats: names of the formats its tables are in.
        num_rows: rows it holds (with probabilities: before the draw), as far as they were read.
        num_rows_taken: rows that were drawn.
        num_samples: samples they became, or pairs.
    """

    name: str
    formats: list[str] = field(default_factory=list)
    num_rows: int = 0
    num_rows_taken: int = 0
    num_samples: int = 0


@dataclass
class DataReport:
    """Counts of a prepared data set; `left_out` and `bad_rows` go by reason.

    `num_weighted` samples have a target that weighs other than 1. A pair counts once, in `num_cut` and `num_weighted`
    too. `remarks`: what is worth a look, by number of rows. `largest_id`: of all token ids.
    """

    sources: list[SourceReport] = field(default_factory=list)
    num_samples: int = 0
    num_tokens: int = 0
    num_target_tokens: int = 0
    num_cut: int = 0
    num_weighted: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    largest_id: int = 0
    num_bad_rows: int = 0
    bad_rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    turn_end: str | None = None
    turn_end_id: int | None = None

    @property
    def num_rows(self) -> int:
        """Rows taken from all sources."""
        return sum(source.num_rows_taken for source in self.sources)

    @property
    def samples(self) -> str:
        """The word for what the rows become."""
        return PAIRS if any(PAIRS in source.formats for source in self.sources) else "samples"

    def lines(self) -> list[str]:
        """The report for a terminal, a fact a line."""
        share = self.num_target_tokens / max(1, self.num_tokens)
        lines = [
            f"{self.num_samples:,} {self.samples} of {self.num_rows:,} rows, {self.num_tokens:,} tokens, "
            f"{self.num_target_tokens:,} of them targets ({share:.1%})"
        ]
        lines += [f"left out, {reason}: {count:,}" for reason, count in sorted(self.left_out.items())]
        if self.num_bad_rows:
            lines.append(f"left out, unusable: {self.num_bad_rows:,}")
        return lines + self.details()

    def details(self) -> list[str]:
        """What `lines` says besides how many there are and how many were left out."""
        lines = [_source_line(source, self.samples) for source in self.sources if len(self.sources) > 1]
        if self.num_cut:
            lines.append(f"cut at max_len: {self.num_cut:,}")
        if self.num_weighted:
            lines.append(f"{self.samples} weighted other than 1: {self.num_weighted:,}")
        lines += [f"{remark}: {count:,} rows" for remark, count in sorted(self.remarks.items())]
        return lines + self.bad_rows + self.notes

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> DataReport:
        values = json.loads(text)
        values["sources"] = [SourceReport(**source) for source in values["sources"]]
        return cls(**values)


def _source_line(source: SourceReport, samples: str) -> str:
    return (
        f"{source.name}: {source.num_samples:,} {samples} of {source.num_rows_taken:,} rows taken "
        f"({source.num_rows:,} read, {', '.join(source.formats)})"
    )


class BadRows:
    """Collects rows that cannot be used; stops the work when there are more than allowed."""

    def __init__(self, max_bad_rows: int):
        self._max_bad_rows = max_bad_rows
        # By kind: the reason without the name that it quotes, which may be another one in each row.
        self._first_names: defaultdict[str, list[str]] = defaultdict(list)
        self._reasons: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._counts: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self._counts.total()

    def add(self, row_name: str, reason: str) -> None:
        kind = _QUOTED.sub("", reason) if len(_QUOTED.findall(reason)) == 1 else reason
        self._counts[kind] += 1
        self._reasons[kind][reason] = None
        if self._counts[kind] <= MAX_NAMES:
            self._first_names[kind].append(row_name)

    def check(self, num_rows_seen: int, at_end: bool = False) -> None:
        """Raises UserError of all problems so far if they are too many, but not before the first rows are seen."""
        if self.count > self._max_bad_rows and (num_rows_seen >= FIRST_ROWS or at_end):
            raise UserError(
                f"{self.count} of the first {num_rows_seen:,} rows cannot be used "
                f"(--data.max_bad_rows allows {self._max_bad_rows}; raise it to leave such rows out):",
                *self.lines(),
            )

    def lines(self) -> list[str]:
        """A line for each kind, with the first rows it was found in and the first names it was found for."""
        lines = []
        for kind, count in self._counts.most_common(MAX_TOLD):
            more = f" and {count - MAX_NAMES:,} more rows" if count > MAX_NAMES else ""
            lines.append(f"{', '.join(self._first_names[kind])}{more}: {_in_one(list(self._reasons[kind]))}.")
        if len(self._counts) > MAX_TOLD:
            lines.append(f"… and {len(self._counts) - MAX_TOLD} more kinds of problems.")
        return lines


def _in_one(reasons: list[str]) -> str:
    """The first of reasons that differ in the name they quote, and the names of the next ones."""
    first, *others = reasons
    quoted = [name for reason in others[:MAX_NAMES] for name in _QUOTED.findall(reason)]
    more = f" and {len(others) - MAX_NAMES:,} more" if len(others) > MAX_NAMES else ""
    return f"{first} (the same of {', '.join(quoted)}{more})" if others else first
