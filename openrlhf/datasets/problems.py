"""Unusable rows: collected, counted against the limit, and told together."""

from __future__ import annotations

from collections import Counter, defaultdict
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
        self._first_names: defaultdict[str, list[str]] = defaultdict(list)  # by reason
        self._counts: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self._counts.total()

    def add(self, row_name: str, reason: str) -> None:
        self._counts[reason] += 1
        if self._counts[reason] <= MAX_NAMES:
            self._first_names[reason].append(row_name)

    def check(self, num_rows_seen: int, at_end: bool = False) -> None:
        """Raises UserError of all problems so far if they are too many, but not before the first rows are seen."""
        if self.count > self._max_bad_rows and (num_rows_seen >= FIRST_ROWS or at_end):
            raise UserError(
                f"{self.count} of the first {num_rows_seen:,} rows cannot be used "
                f"(--data.max_bad_rows allows {self._max_bad_rows}; raise it to leave such rows out):",
                *self.lines(),
            )

    def lines(self) -> list[str]:
        """A line for each reason, with the first rows it was found in."""
        lines = []
        for reason, count in self._counts.most_common(MAX_TOLD):
            more = f" and {count - MAX_NAMES:,} more rows" if count > MAX_NAMES else ""
            lines.append(f"{', '.join(self._first_names[reason])}{more}: {reason}.")
        if len(self._counts) > MAX_TOLD:
            lines.append(f"… and {len(self._counts) - MAX_TOLD} more kinds of problems.")
        return lines


def readable_rows(tables: Iterable[Table]) -> Iterator[Row]:
    """Every row of the tables; raises UserError of those that cannot be read."""
    bad_rows, num_rows = BadRows(max_bad_rows=0), 0
    for table in tables:
        for block in table.blocks():
            num_rows += len(block.numbers)
            for number, row in zip(block.numbers, block.rows(), strict=True):
                if isinstance(row, dict):
                    yield row
                else:
                    bad_rows.add(table.row_name(number), str(row))
            bad_rows.check(num_rows)
    bad_rows.check(num_rows, at_end=True)
