"""The meaning of a data spec: files, folders, saved data sets or hub names, separated by commas."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf.config.disk import DATA_SUFFIXES, IS_PATTERN, data_file_kind, local_path, split_names
from openrlhf.datasets.hub import hub_can_be_asked, is_offline_by_choice
from openrlhf.datasets.sources.readers import SPLIT_WORDS
from openrlhf.datasets.sources.tables import DatasetTable, FileTable, ListTable, Table
from openrlhf.errors import UserError, first_line_of

HIDDEN = (".", "_")


@dataclass(frozen=True)
class Source:
    """One entry of the spec: its name as the user wrote it, its tables, and the members of its folder that are none.

    `skipped` gives each member with the reason.
    """

    name: str
    tables: list[Table]
    skipped: list[str] = field(default_factory=list)


def open_sources(spec: str, split: str = "train") -> list[Source]:
    """The sources of a comma list of `path`, `path@subfolder`, `hub/name` or `hub/name@configuration`.

    Raises UserError of every entry that is not there.
    """
    names = split_names(spec)
    if not names:
        raise UserError("--data.dataset is empty: give a file, a folder or a hub name.")
    sources, problems = [], []
    for name in names:
        try:
            sources.append(_source(name, split))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return sources


def source_of(dataset: Any) -> Source:
    """A `datasets.Dataset`, or any sequence of dicts, as a source. Raises UserError of a stream."""
    if not hasattr(dataset, "__len__"):
        raise UserError(
            f"The data set is a stream ({type(dataset).__name__}), whose rows are given once and not counted: "
            "save it as JSONL, or load it whole (streaming=False)."
        )
    is_dataset = hasattr(dataset, "with_format") and hasattr(dataset, "features")
    name = "the data set"
    return Source(name, [DatasetTable(name, dataset) if is_dataset else ListTable(name, dataset)])


def tables_here(spec: str, split: str) -> set[str]:
    """Names of the tables of a spec's files, folders and saved data sets; each split of a hub's has tables of its own.

    Raises UserError of an entry that is not there.
    """
    paths = {name: _path_of(name) for name in split_names(spec)}
    tables = [table for name, path in paths.items() if path for table in _local_source(name, path, split).tables]
    return {os.path.realpath(table.name) for table in tables}


def _source(name: str, split: str) -> Source:
    if path := _path_of(name):
        return _local_source(name, path, split)
    base, _, part = name.rpartition("@")
    return Source(name, [_hub_table(base or name, part if base else None, split)])


def _path_of(name: str) -> Path | None:
    """The file or folder that an entry means; None: it is a hub name."""
    whole = local_path(name)
    if whole.exists():
        return whole
    base, _, part = name.rpartition("@")
    if base and local_path(base).exists():
        return _subfolder(local_path(base), part)
    if "*" in (base or name):
        raise UserError(f"{name} {IS_PATTERN}")
    if _looks_like_path(base or name):
        raise UserError(f"{name} does not exist{_nearest(local_path(base or name))}")
    return None


def _subfolder(folder: Path, part: str) -> Path:
    if not (folder / part).exists():
        raise UserError(f"{folder} has no {part!r}; it has {_listing(folder)}.")
    return folder / part


def _local_source(name: str, path: Path, split: str) -> Source:
    if path.is_file():
        if data_file_kind(path) is None:
            raise UserError(
                f"{path} is of an unknown kind: known are {', '.join(DATA_SUFFIXES)}, text ones also .gz and .zst."
            )
        return Source(name, [FileTable(str(path))])
    if not path.is_dir():
        raise UserError(f"{path} is a pipe or a device, which may be read once or has no end: write a file.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return Source(name, [_saved_table(path, split)])
    members = _members(path)
    files = [member for member, reason in members.items() if not reason]
    if not files:
        raise UserError(f"{path} holds no data file ({', '.join(DATA_SUFFIXES)}); it has {_listing(path)}.")
    chosen = _of_split(files, path, split)
    members.update({file: f"not of the split {split!r}" for file in files if file not in chosen})
    skipped = [f"{member.relative_to(path)} ({reason})" for member, reason in members.items() if reason]
    return Source(name, [FileTable(str(file)) for file in chosen], skipped)


def _members(folder: Path) -> dict[Path, str]:
    """All files of a folder and its subfolders, in order; each with the reason why it is no data file, else ''.

    Raises UserError where a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error

    found = {}
    for parent, folders, files in os.walk(folder, onerror=refuse):
        for name in [*files, *folders]:
            member = Path(parent, name)
            if name in files or member.is_symlink() or name.startswith(HIDDEN):
                found[member] = _why_skipped(member)
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
    return dict(sorted(found.items()))


def _why_skipped(member: Path) -> str:
    if member.name.startswith(HIDDEN):
        return "its name begins with . or _"
    try:
        if member.is_dir():
            return "a link to a folder"
        if not member.exists():
            return "a link to nothing"
        if not member.is_file():
            return "a pipe or a device"
    except OSError as error:  # a link into a folder that may not be entered
        return f"cannot be read: {error.strerror}"
    return "" if data_file_kind(member) else "of an unknown kind"


def _saved_table(path: Path, split: str) -> Table:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # any of the library's and of Arrow's
        raise UserError(f"{path} is no saved data set that can be opened: {first_line_of(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(
                f"{path} has no split {split!r}; it has {', '.join(map(repr, loaded))} (--data.dataset_split)."
            )
        return DatasetTable(f"{path} ({split})", loaded[split])
    return DatasetTable(str(path), loaded)


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    """The files of a split, where the folder's file or folder names tell splits apart; else all."""
    splits = {file: _split_of(file.relative_to(folder)) for file in files}
    if not any(splits.values()):
        return files
    if unnamed := [file.name for file in files if splits[file] is None]:
        raise UserError(
            f"{folder} has files named after a split and others that are not ({', '.join(sorted(unnamed)[:5])}): "
            "which belong together cannot be told. Give the files themselves, by commas, or rename them."
        )
    chosen = [file for file in files if splits[file] == split]
    if not chosen:
        found = sorted({word for word in splits.values() if word})
        raise UserError(f"{folder} has files for {', '.join(found)}, but none for {split!r} (--data.dataset_split).")
    return chosen


def _split_of(path: Path) -> str | None:
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((word for word in SPLIT_WORDS if word in words), None)


def _hub_table(name: str, part: str | None, split: str) -> Table:
    import datasets

    if not hub_can_be_asked() and not is_offline_by_choice():
        raise UserError(
            f"{name!r} is no local file or folder, and the hub cannot be reached from here: "
            "give the path of a file or folder, or set HF_HUB_OFFLINE=1 to use what was fetched before."
        )
    try:
        loaded = _load_from_hub(datasets, name, part, split)
    except Exception as error:  # any failure of a remote load ends in the same advice
        raise UserError(
            f"{name!r} is no local file or folder, and could not be loaded from the hub: {first_line_of(error)}"
        ) from error
    return DatasetTable(name if part is None else f"{name}@{part}", loaded)


def _load_from_hub(datasets: Any, name: str, part: str | None, split: str) -> Any:
    """`part` is a configuration if the data set has one of that name, else a folder in it."""
    if part is None or part in datasets.get_dataset_config_names(name):
        return datasets.load_dataset(name, part, split=split)
    return datasets.load_dataset(name, data_dir=part, split=split)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or data_file_kind(name) is not None or name.count("/") > 1


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})."
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else "."


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "nothing in it"
