"""Numbers that are joined to pairs: log-probs of a reference, the subset of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from openrlhf.batching import Unit
from openrlhf.config import DataConfig
from openrlhf.datasets.sources.find import open_sources
from openrlhf.datasets.sources.tables import Table
from openrlhf.errors import UserError

_MAX_SUBSETS = 1000


class PairsWithNumbers:
    """A data set of pairs whose units hold more numbers; in all else it is `dataset`."""

    def __init__(self, dataset: Any, numbers: Mapping[str, np.ndarray]):
        """Args: numbers: (rows,) each, by name."""
        self._dataset = dataset
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> Any:
        return self._dataset[row]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def unit(self, row: int) -> Unit:
        unit = self._dataset.unit(row)
        return replace(unit, numbers={**unit.numbers, **{name: float(of[row]) for name, of in self._numbers.items()}})


def subsets_of(pairs: Any, data: DataConfig, key: str) -> tuple[list[str], np.ndarray]:
    """The values that the rows of a `PairDataset` have in column `key`, sorted, and the place of each row's, (rows,).

    Args: data: what the pairs were prepared by.

    Raises UserError where a row lacks the column, or there are too many values.
    """
    tables = [table for source in open_sources(data.dataset, data.dataset_split) for table in source.tables]
    values = [_values(table, key) for table in tables]
    of_pairs = [values[table][row] for table, row in (pairs.samples.origin(2 * number) for number in range(len(pairs)))]
    names = sorted(set(of_pairs))
    if len(names) > _MAX_SUBSETS:
        raise UserError(
            f"--eval.subset_key {key}: the column has {len(names):,} values, more than {_MAX_SUBSETS:,}: name one that "
            "tells kinds of rows apart."
        )
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[name] for name in of_pairs], dtype=np.int64)


def _values(table: Table, key: str) -> dict[int, str]:
    """By number of the row; rows that cannot be read are no pairs."""
    found: dict[int, str] = {}
    for block in table.blocks():
        for number, row in zip(block.numbers, block.rows(), strict=True):
            if not isinstance(row, dict):
                continue
            if row.get(key) is None:
                columns = ", ".join(sorted(row))
                finding = "holds nothing (null) there" if key in row else f"has no such column ({columns})"
                raise UserError(f"--eval.subset_key {key}: {table.row_name(number)} {finding}.")
            found[number] = str(row[key])
    return found
