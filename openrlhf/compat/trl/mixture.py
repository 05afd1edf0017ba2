"""A mixture of data sets, as TRL's scripts describe and load it."""

from __future__ import annotations

import dataclasses
from typing import Any

from openrlhf.errors import UserError

_SEED = 42  # of the split, as there


@dataclasses.dataclass
class TrlDatasetConfig:
    """`DatasetConfig`: one source, by the arguments of `datasets.load_dataset`.

    Args: columns: the only ones kept; fraction: its share of the mixture, which all sources have or none.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: Any = None
    split: str = "train"
    columns: list[str] | None = None
    fraction: float | None = None


@dataclasses.dataclass
class TrlMixtureConfig:
    """`DatasetMixtureConfig`: sources, each a DatasetConfig or a dict with its names."""

    datasets: list[TrlDatasetConfig] = dataclasses.field(default_factory=list, metadata={"help": "sources"})
    streaming: bool = dataclasses.field(default=False, metadata={"help": "refused: rows are prepared once"})
    test_split_size: float | None = dataclasses.field(default=None, metadata={"help": "rows or share set aside"})

    def __post_init__(self) -> None:
        self.datasets = [TrlDatasetConfig(**one) if isinstance(one, dict) else one for one in self.datasets]


def get_dataset(mixture_config: TrlMixtureConfig) -> Any:
    """A DatasetDict with `train`, and `test` where rows are set aside. Raises UserError for a stream, or no source."""
    import datasets

    if mixture_config.streaming:
        raise UserError("streaming is not here: leave it out; rows are prepared once, and read from disk by page.")
    if not mixture_config.datasets:
        raise UserError("the mixture names no data set: give datasets, each with a path.")
    parts = []
    for one in mixture_config.datasets:
        part = datasets.load_dataset(
            one.path, one.name, data_dir=one.data_dir, data_files=one.data_files, split=one.split
        )
        parts.append(part if one.columns is None else part.select_columns(one.columns))
    fractions = [one.fraction for one in mixture_config.datasets if one.fraction is not None]
    rows = datasets.concatenate_datasets(_shares(parts, fractions) if fractions else parts)
    if mixture_config.test_split_size is None:
        return datasets.DatasetDict({"train": rows})
    size = mixture_config.test_split_size
    return rows.train_test_split(test_size=int(size) if size >= 1 else size, shuffle=True, seed=_SEED)


def _shares(parts: list[Any], fractions: list[float]) -> list[Any]:
    """The first rows of each source: the most that make the shares without a row twice."""
    if len(fractions) < len(parts) or min(fractions) < 0 or not sum(fractions):
        raise UserError("fraction is a share of the mixture: give every data set one, 0 or above, or none of them.")
    shares = [fraction / sum(fractions) for fraction in fractions]
    total = min(len(part) / share for part, share in zip(parts, shares, strict=True) if share)
    return [part.select(range(round(share * total))) for part, share in zip(parts, shares, strict=True)]
