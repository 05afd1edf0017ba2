"""Writing so that a crash of the process or the machine leaves the old file or the new one, never a piece."""

import json
import os
from pathlib import Path
from typing import Any


def flush_file(path: Path) -> None:
    """Hand a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


flush_folder = flush_file  # a folder's names are flushed through a descriptor just like a file's bytes


def write_text(path: Path, text: str) -> None:
    """Write and flush; not atomic, for files inside a folder that is put in place as a whole."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Like `write_text`, for a value that JSON can hold."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def aside_of(path: Path) -> Path:
    """Where `replace_text` writes before it renames."""
    return path.with_name(f".writing-{path.name}")


def replace_text(path: Path, text: str) -> None:
    """Write aside, flush, rename over `path`, flush the folder."""
    aside = aside_of(path)
    write_text(aside, text)
    os.replace(aside, path)
    flush_folder(path.parent)
