"""Rules of data files and input templates that the checks of a configuration and the data room share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Literal

FileKind = Literal["json_lines", "json", "table", "text", "parquet", "arrow"]

KIND_OF_SUFFIX: dict[str, FileKind] = {
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json",
    ".csv": "table",
    ".tsv": "table",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".zst")

_MARK = "\x00"


def has_data_suffix(name: str) -> bool:
    """Whether a name ends like a data file, compressed (even in a way that cannot be read) or not."""
    return any(suffix.lower() in KIND_OF_SUFFIX for suffix in PurePath(name).suffixes[-2:])


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
