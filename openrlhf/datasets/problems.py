"""Unusable rows: collected, counted against the limit, and told together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from openrlhf.datasets.samples import Row
from openrlhf.datasets.sources.tables import Table
from openrlhf.errors import UserError

FIRST_ROWS = 1000  # problems of so many rows are told together
MAX_TOLD = 40
MAX_NAMES = 5


class BadRows:
    """Collects rows that cannot be used; stops the work when there are more than allowed."""

    def __init__(self, max_bad_rows: int):
        self._max_bad_rows = max_bad_rows
        self._names_by_reason: dict[str, list[str]] = {}
        self._count_by_reason: dict[str, int] = {}

    @property
    def count(self) -> int:
        return sum(self._count_by_reason.values())

    def add(self, row_name: str, reason: str) -> None:
        names = self._names_by_reason.setdefault(reason, [])
        if len(names) < MAX_NAMES:
            names.append(row_name)
        self._count_by_reason[reason] = self._count_by_reason.get(reason, 0) + 1

    def check(self, num_rows_seen: int, at_end: bool = False) -> None:
        """Raises UserError of all problems so far if they are too many, but not before the first rows are seen."""
        if self.count <= self._max_bad_rows or (num_rows_seen < FIRST_ROWS and not at_end):
            return
        raise UserError(
            f"{self.count} of the first {num_rows_seen:,} rows cannot be used "
            f"(--data.max_bad_rows allows {self._max_bad_rows}; raise it to leave such rows out):",
            *self.lines(),
        )

    def lines(self) -> list[str]:
        """A line for each reason, with the first rows it was found in."""
        reasons = sorted(self._count_by_reason, key=self._count_by_reason.__getitem__, reverse=True)
        lines = [self._line(reason) for reason in reasons[:MAX_TOLD]]
        if len(reasons) > MAX_TOLD:
            lines.append(f"… and {len(reasons) - MAX_TOLD} more kinds of problems.")
        return lines

    def _line(self, reason: str) -> str:
        names, count = self._names_by_reason[reason], self._count_by_reason[reason]
        more = f" and {count - len(names):,} more rows" if count > len(names) else ""
        return f"{', '.join(names)}{more}: {reason}."


def readable_rows(tables: Iterable[Table]) -> Iterator[Row]:
    """Every row of the tables; raises UserError of those that cannot be read."""
    bad_rows, num_rows = BadRows(max_bad_rows=0), 0
    for table in tables:
        for block in table.blocks():
            for number, row in zip(block.numbers, block.rows(), strict=True):
                num_rows += 1
                if isinstance(row, dict):
                    yield row
                else:
                    bad_rows.add(table.row_name(number), str(row))
            bad_rows.check(num_rows)
    bad_rows.check(num_rows, at_end=True)
