"""Rules of data files and input templates that the checks of a configuration and the data room share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Literal

# `openrlhf.datasets.sources.readers` has a reader for each kind.
FileKind = Literal["jsonl", "json", "csv", "text", "parquet", "arrow"]

DATA_SUFFIXES: dict[str, FileKind] = {
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

_MARK = "\x00"


def data_file_kind(name: str | PurePath) -> FileKind | None:
    """The kind of a data file by its name, compressed or not; None for a name that is of no data file."""
    path = PurePath(name)
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    return DATA_SUFFIXES.get(suffix.lower())


def has_data_suffix(name: str) -> bool:
    """Whether a name ends like a data file, compressed (even in a way that cannot be read) or not."""
    return any(suffix.lower() in DATA_SUFFIXES for suffix in PurePath(name).suffixes[-2:])


def template_problems(template: str) -> Iterator[str]:
    """Why `template.format(prompt)` cannot put the prompt in its place; nothing where it can.

    The rules are those of `str.format`: `{}` is the place, `{{` and `}}` are braces of the text.
    """
    try:
        is_in_place = template.format(_MARK).count(_MARK) == 1
    except (IndexError, KeyError, ValueError, AttributeError):
        is_in_place = False
    if not is_in_place:
        yield (
            f"--data.input_template {template!r} must hold the place of the input, {{}}, once, as in 'User: {{}}'; "
            "a brace of the text itself is written twice, {{ or }}."
        )
