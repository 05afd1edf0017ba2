"""Writing so that a crash of the process or the machine leaves the old file or the new one, never a part of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_flushed(path: Path, text: str) -> None:
    """Write and flush a file. This is not atomic: it is for files in a folder that is renamed as a whole."""
    path.write_text(text, encoding="utf-8")
    flush_to_disk(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A write that the system refuses does not say where: an OSError of the block names the file."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path; the file written there takes the place of `path` at the end of the block.

    Several processes may replace one file: each has a temporary path of its own, and the last one stays. An error in
    the block leaves `path` as it was and removes the temporary file. After a kill the temporary file stays;
    `remove_leftovers` removes it.

    Raises OSError where the folder of `path` cannot be written. The folder must exist.
    """
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}")
    try:
        yield temporary
        # The order matters: content, then the rename, then the name. A crash between two of them leaves one whole file.
        flush_to_disk(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a write that the system refuses does not say where
        raise
    flush_to_disk(path.parent)


def replace_file(path: Path, content: str | bytes) -> None:
    """Put a file with this content, text as UTF-8, in the place of `path`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def keep_aside(path: Path) -> None:
    """Give a file that is there the first free name of `<name>.previous`, `<name>.previous_2`, …: a new one follows."""
    if os.path.lexists(path):
        names = (f"{path.name}.previous" + (f"_{number}" if number > 1 else "") for number in count(1))
        os.replace(path, next(free for name in names if not os.path.lexists(free := path.with_name(name))))


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes have left beside `path`."""
    for temporary in path.parent.glob(f"{_prefix(path)}*"):
        temporary.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    return f".writing-{path.name}."
