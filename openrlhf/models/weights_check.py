"""The weights of a base model: their files are whole, they are those that its config.json asks for, and are numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from openrlhf.config.disk import is_lfs_pointer, local_path
from openrlhf.engine.parameters import names_of_non_finite
from openrlhf.errors import UserError, first_line_of

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, as its format says
_MAX_NAMES = 5


def check_weight_files(path: str) -> None:
    """Reads headers and sizes alone. Raises UserError for each file of a folder that is missing, cut, or a pointer."""
    folder = local_path(path)
    if not folder.is_dir():
        return
    problems = [problem for file in _weight_files(folder) if (problem := _problem_of(file))]
    if problems:
        raise UserError(*problems)


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights, in the order in which transformers looks for them."""
    for single, index in zip(_SINGLE_FILES, _INDEXES, strict=True):
        if (folder / single).exists():
            return [folder / single]
        if (folder / index).exists():
            try:
                names = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
                return [folder / name for name in sorted(set(names))]
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise UserError(f"{folder / index} is damaged: {first_line_of(error)}. Fetch it again.") from error
    return []


def _problem_of(file: Path) -> str | None:
    try:
        if is_lfs_pointer(file):
            return f"{file} is a pointer of Git LFS, not the weights themselves: fetch them by `git lfs pull`."
        if file.suffix == ".safetensors" and (finding := _problem_of_safetensors(file)):
            return f"{file} {finding}: fetch or save the model again."
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}."
    return None


def _problem_of_safetensors(file: Path) -> str | None:
    """What is wrong with a header, or with the size of what follows it."""
    size_bytes = file.stat().st_size
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            return f"is no safetensors file, or is cut short ({size_bytes:,} bytes)"
        try:
            entries = json.loads(opened.read(header_bytes))
            ends = [one["data_offsets"][1] for name, one in entries.items() if name != "__metadata__"]
            expected_bytes = 8 + header_bytes + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "has a damaged header"
    if size_bytes != expected_bytes:
        return f"has {size_bytes:,} bytes instead of {expected_bytes:,}"
    return None


def check_loaded(model: nn.Module, info: dict[str, Any], path: str) -> None:
    """Raises UserError that names the weights that are missing, extra, of another shape, or not finite.

    Args: info: what transformers says of the loading.
    """
    mismatched = [f"{one[0]} {tuple(one[1])} instead of {tuple(one[2])}" for one in sorted(info["mismatched_keys"])]
    problems = [
        *_told("lacks weights of the model", sorted(info["missing_keys"])),
        *_told("holds weights that the model has not", sorted(info["unexpected_keys"])),
        *_told("holds weights of another shape", mismatched),
        *_told("could not be read in full", list(info.get("error_msgs") or ())),
        *_told("holds weights that are not finite", names_of_non_finite(model)),
    ]
    if problems:
        raise UserError(
            *(f"The model {path} {problem}." for problem in problems),
            "Its config.json and its weights do not belong together, or are damaged: fetch or save the model again.",
        )


def _told(finding: str, names: list[str]) -> Iterable[str]:
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return [f"{finding}: {', '.join(names[:_MAX_NAMES])}{more}"] if names else []
