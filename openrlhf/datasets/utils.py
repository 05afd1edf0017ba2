"""`blending_datasets`: several sources as one `datasets.Dataset`, every row as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf.config.compat import meaning_in_script
from openrlhf.datasets.cache import open_cache_dir, prepared_folder
from openrlhf.datasets.fingerprint import hash_of, known_hashes
from openrlhf.datasets.prepared import is_whole, list_file
from openrlhf.datasets.samples import Row
from openrlhf.datasets.sources.find import Source, open_sources
from openrlhf.datasets.sources.mixing import drawn_rows, parse_probabilities
from openrlhf.datasets.sources.tables import DatasetTable, readable_rows
from openrlhf.errors import UserError

__all__ = ["blending_datasets"]

ROWS_FILE = "rows.arrow"
SCALARS = {str: "string", bool: "bool", int: "int64", float: "float64"}


def blending_datasets(
    datasets: str,
    probabilities: str | None = None,
    strategy: Any = None,
    seed: int = 42,
    max_count: float | None = None,
    stopping_strategy: str | None = None,
    dataset_split: str = "train",
    cache_dir: str | Path | None = None,
) -> Any:
    """The rows of a comma list of sources as one `datasets.Dataset`.

    Without probabilities: every row of every source once, source after source. With them (`"0.7,0.3"`): the largest
    mix in these shares that repeats no row, drawn and shuffled by the seed (see `sources.mixing`).

    Args:
        strategy: its `print` tells how many rows each source gave, and `args.compat` says what is meant by a
            `stopping_strategy` that is left out; may be None.
        max_count: no more rows than this, the first ones.
        stopping_strategy: "all_exhausted" repeats rows until every source is used up; "first_exhausted" none, as does
            None without `args.compat`.

    Raises UserError if a source is not there or cannot be read, or for another `stopping_strategy`.
    """
    sources = open_sources(datasets, dataset_split)
    shares = parse_probabilities(probabilities, len(sources))
    parts = [_rows_of(source, open_cache_dir(cache_dir)) for source in sources]
    counts = list(map(len, parts))
    if stopping_strategy is None:
        in_script = meaning_in_script(getattr(strategy, "args", None), "data.stopping_strategy")
        stopping_strategy = in_script or "first_exhausted"
    if shares is None:
        blended = _joined(parts)
    else:
        passes = drawn_rows(counts, shares, seed, _known(stopping_strategy))
        drawn = [np.concatenate(of_source) for of_source in zip(*passes, strict=True)]
        parts = [part.select(rows) for part, rows in zip(parts, drawn, strict=True)]
        blended = _joined(parts).shuffle(generator=np.random.Generator(np.random.Philox(key=[seed, len(sources)])))
    if max_count is not None:
        blended = blended.select(range(min(int(max_count), len(blended))))
    if strategy is not None:
        for source, part, count in zip(sources, parts, counts, strict=True):
            strategy.print(f"{source.name}: {len(part):,} of {count:,} rows")
        strategy.print(f"all sources: {len(blended):,} rows")
    return blended


def _known(stopping_strategy: str) -> Any:
    if stopping_strategy not in ("first_exhausted", "all_exhausted"):
        raise UserError(
            f"blending_datasets(stopping_strategy={stopping_strategy!r}): first_exhausted and all_exhausted are here."
        )
    return stopping_strategy


def _joined(parts: list[Any]) -> Any:
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    try:
        return concatenate_datasets(parts)
    except (ValueError, TypeError) as error:  # columns of one name and several types
        raise UserError(f"The sources cannot be joined to one data set: {error}") from error


def _rows_of(source: Source, cache_dir: Path) -> Any:
    """A source's rows as a Dataset: a loaded one as it is, files through an Arrow file in the cache."""
    import datasets

    if len(source.tables) == 1 and isinstance(source.tables[0], DatasetTable):
        return source.tables[0].dataset
    known = known_hashes(cache_dir)
    key = "rows-" + hash_of([[table.name, table.content_hash(known)] for table in source.tables])
    folder = prepared_folder(
        cache_dir,
        key,
        make=lambda folder: _write_rows(source, folder),
        is_whole=is_whole,
    )
    return datasets.Dataset.from_file(str(folder / ROWS_FILE))


def _write_rows(source: Source, folder: Path) -> None:
    """Writes the rows twice over: once to see every column's kind, once to write them."""
    from datasets.arrow_writer import ArrowWriter

    features = _features(readable_rows(source.tables))
    if not features:
        raise UserError(f"{source.name} is empty: it holds no row.")
    with ArrowWriter(features=features, path=str(folder / ROWS_FILE)) as writer:
        for row in readable_rows(source.tables):
            writer.write({name: row.get(name) for name in features})
        writer.finalize()
    for table in source.tables:
        table.check_unchanged()  # the folder is named by its hash
    list_file(folder, ROWS_FILE)


def _features(rows: Iterator[Row]) -> Any:
    """A column of one scalar kind keeps it; lists, objects and mixtures are kept as JSON, key by key as written."""
    from datasets import Features, Json, Value

    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).update(() if value is None else (type(value),))
    features = {}
    for name, found in kinds.items():
        scalar = SCALARS.get(next(iter(found))) if len(found) == 1 else None
        features[name] = Value(scalar) if scalar else Value("string") if not found else Json()
    return Features(features)
