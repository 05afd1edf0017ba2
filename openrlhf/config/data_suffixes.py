"""Names of data files: the suffixes that the data room reads, known here so that they can be checked early."""

from __future__ import annotations

from pathlib import PurePath

# Suffix → kind of file; `openrlhf.datasets.sources.readers` has a reader for each kind.
DATA_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".zst")


def data_file_kind(name: str | PurePath) -> str | None:
    """The kind of a data file by its name, compressed or not; None for a name that is of no data file."""
    path = PurePath(name)
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    return DATA_SUFFIXES.get(suffix.lower())
