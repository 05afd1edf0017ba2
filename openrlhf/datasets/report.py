"""Counts of the rows and the samples made of them: kept beside the samples, shown at the start of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class SourceReport:
    """Counts of one source.

    Attributes:
        name: as the user wrote it.
        formats: names of the formats its tables are in.
        num_rows: rows it holds (with probabilities: before the draw), as far as they were read.
        num_rows_taken: rows that were drawn.
        num_samples: samples they became.
    """

    name: str
    formats: list[str] = field(default_factory=list)
    num_rows: int = 0
    num_rows_taken: int = 0
    num_samples: int = 0


@dataclass
class DataReport:
    """Counts of a prepared data set; `left_out` and `bad_rows` go by reason.

    `num_weighted` samples have a target that weighs other than 1.
    """

    sources: list[SourceReport] = field(default_factory=list)
    num_samples: int = 0
    num_tokens: int = 0
    num_target_tokens: int = 0
    num_cut: int = 0
    num_weighted: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    num_bad_rows: int = 0
    bad_rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    turn_end: str | None = None
    turn_end_id: int | None = None

    @property
    def num_rows(self) -> int:
        """Rows taken from all sources."""
        return sum(source.num_rows_taken for source in self.sources)

    def lines(self) -> list[str]:
        """The report for a terminal, a fact a line."""
        share = self.num_target_tokens / max(1, self.num_tokens)
        lines = [
            f"{self.num_samples:,} samples of {self.num_rows:,} rows, {self.num_tokens:,} tokens, "
            f"{self.num_target_tokens:,} of them targets ({share:.1%})"
        ]
        lines += [_source_line(source) for source in self.sources if len(self.sources) > 1]
        lines += [f"left out, {reason}: {count:,}" for reason, count in sorted(self.left_out.items())]
        if self.num_bad_rows:
            lines.append(f"left out, unusable: {self.num_bad_rows:,}")
        if self.num_cut:
            lines.append(f"cut at max_len: {self.num_cut:,}")
        if self.num_weighted:
            lines.append(f"samples weighted other than 1: {self.num_weighted:,}")
        return lines + self.bad_rows + self.notes

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=True), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> DataReport:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["sources"] = [SourceReport(**source) for source in values["sources"]]
        return cls(**values)


def _source_line(source: SourceReport) -> str:
    return (
        f"{source.name}: {source.num_samples:,} samples of {source.num_rows_taken:,} rows taken "
        f"({source.num_rows:,} read, {', '.join(source.formats)})"
    )
