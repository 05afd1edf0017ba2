"""What a stage leaves: rows appended as they come, and a manifest of what they depend on.

    manifest.json      stage, settings, weights, inputs: written before the first row, so that rows of other settings,
                       weights or inputs never join them; `files` once the stage is finished
    rows-<name>.jsonl  a shard: a JSON object a line, appended and flushed by one process at a time
    left_out-<name>.jsonl  the same of what became no row, with the reason
    stats.json         counts of the finished stage

A line counts once it ends with a line feed: a process that dies leaves at most one torn line, at the end of its shard.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from openrlhf.atomic_file import replace_file
from openrlhf.config.schema import Root, settings, shown_values
from openrlhf.errors import UserError

MANIFEST, STATS = "manifest.json", "stats.json"
ROWS, LEFT_OUT = "rows", "left_out"
_FORMAT = 1
_BLOCK_BYTES = 4 << 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """What the rows of a stage depend on: other rows belong to another folder.

    Attributes:
        stage: its command: generate, score, select, train.
        settings: value by dotted name; see `settings_of`.
        weights: fingerprint of the model, where one speaks.
        inputs: hash by name.
    """

    stage: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Flat, as JSON reads them back: each fact under the words that a message calls it by."""
        facts = {f"--{name}": value for name, value in self.settings.items()}
        facts |= {"the model's weights": self.weights}
        facts |= {f"the content of {name}": value for name, value in self.inputs.items()}
        return {"the stage": self.stage, **json.loads(json.dumps(facts, default=str))}


def settings_of(config: Root) -> dict[str, Any]:
    """The settings that rows depend on: those that are declared `must_match`."""
    known = settings(type(config))
    return {name: value for name, value in shown_values(config).items() if known[name].resume == "must_match"}


def open_output(folder: Path, identity: Identity, flag: str) -> None:
    """Makes the folder of a stage, or goes on with it.

    Args: flag: the one that names the folder, for messages.

    Raises UserError where the folder holds the output of another run or something else, or cannot be written.
    """
    is_used = folder.exists() and any(not name.startswith(".") for name in os.listdir(folder))
    found = read_manifest(folder)  # another rank may just have written it
    if found is None:
        if is_used:
            raise UserError(
                f"{flag} {folder} is no empty folder and no output of a {identity.stage} stage: give another."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_manifest(folder, {"facts": identity.facts()})
        except OSError as error:
            raise UserError(f"{flag} {folder} cannot be written: {error.strerror}.") from error
    elif changes := differences(found, identity):
        raise UserError(
            f"{flag} {folder} is the output of another run: {'; '.join(changes)}. "
            "Give another folder, or the settings of that run."
        )


def grow_output(folder: Path, identity: Identity, setting: str) -> str | None:
    """Takes a higher value of one setting for a folder that is the same otherwise; the rows that are there stay.

    Returns the change in words; None where there is none of that kind.
    """
    manifest, facts, name = read_manifest(folder), identity.facts(), f"--{setting}"
    old = manifest["facts"] if manifest is not None else facts
    if {**old, name: facts[name]} != facts or old[name] >= facts[name]:
        return None
    _write_manifest(folder, {"facts": facts})
    return _change(name, old[name], facts[name])


def differences(manifest: Mapping[str, Any], identity: Identity) -> list[str]:
    """What an identity has other than a manifest, in words; empty where they are one."""
    old, new = manifest["facts"], identity.facts()
    return [_change(name, old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)]


def finish(folder: Path, stats: Mapping[str, Any]) -> None:
    """Writes `stats.json`, and marks the stage as finished: its manifest then has its files' sizes and hashes."""
    manifest = _manifest_of(folder)
    replace_file(folder / STATS, json.dumps(stats, indent=1) + "\n")
    files = {path.name: [path.stat().st_size, _hash_of(path)] for path in shards(folder)}
    _write_manifest(folder, {**manifest, "files": files})


def noted_model(folder: Path, server: str, found: str | None = None) -> str | None:
    """The fingerprint of the model behind a server that has judged the first of the rows; `found`, where none has."""
    models = (manifest := _manifest_of(folder)).setdefault("models", {})
    if found is not None and server not in models:
        models[server] = found
        _write_manifest(folder, manifest)
    return models.get(server)


def is_finished(folder: Path) -> bool:
    """Whether the stage is finished, its counts can be read, and its shards have the sizes that they had then."""
    manifest = read_manifest(folder)
    if manifest is None or "files" not in manifest or stats_in(folder / STATS) is None:
        return False
    sizes = {path.name: path.stat().st_size for path in shards(folder)}
    return sizes == {name: size_bytes for name, (size_bytes, _) in manifest["files"].items()}


def content_of(folder: Path) -> str:
    """Hash of a finished stage's rows, or of a file, for the identity of the next stage.

    Raises UserError where the stage is not finished, or its rows are not those that it has left.
    """
    if folder.is_file():
        return _hash_of(folder)
    if not folder.exists():
        raise UserError(f"{folder} does not exist: give the output of the stage before.")
    if not is_finished(folder):
        raise UserError(f"{folder} is not the output of a finished stage: start the command that writes it again.")
    manifest = _manifest_of(folder)
    for name, (_, digest) in manifest["files"].items():
        if _hash_of(folder / name) != digest:
            raise UserError(
                f"{folder / name} has changed since its stage was finished: put it back, or remove {folder} and start "
                "the command that writes it again."
            )
    return xxhash.xxh3_128(json.dumps([manifest["facts"], manifest["files"]], sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stage's folder; None where there is none. Raises UserError where it is damaged."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT or not isinstance(manifest["facts"], dict):
            raise ValueError("another format")
        if any(len(one) != 2 for one in dict(manifest.get("files", {})).values()):
            raise ValueError("its files have no sizes and hashes")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no manifest of a stage that can be read ({error}): give another folder.") from error
    return dict(manifest)


def _manifest_of(folder: Path) -> dict[str, Any]:
    if (manifest := read_manifest(folder)) is None:
        raise UserError(f"{folder / MANIFEST} has been removed: put it back, or remove the folder, and start again.")
    return manifest


def read_stats(folder: Path) -> dict[str, Any]:
    """The counts of a finished stage."""
    if (stats := stats_in(folder / STATS)) is None:
        raise UserError(f"{folder / STATS} cannot be read: start the command that writes it again.")
    return stats


def stats_in(path: Path) -> dict[str, Any] | None:
    """None where no counts can be read."""
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return stats if isinstance(stats, dict) else None


def shards(folder: Path, kind: str = ROWS) -> list[Path]:
    return sorted(folder.glob(f"{kind}-*.jsonl"))


class Place(NamedTuple):
    """Where a row stands: the number of its file, and the first byte of its line."""

    file: int
    offset_bytes: int


class StoredRows:
    """The rows of a folder, or of one file of JSON lines; each iteration reads them anew, a line at a time.

    Lines that are no JSON object are stepped over, and in a folder one that has not been written to its end.

    Attributes: num_rows, num_torn: rows, and lines stepped over, of the last iteration.
    """

    def __init__(self, path: Path, kind: str = ROWS):
        """Raises UserError where there is nothing to read."""
        self.path = path
        self.num_rows = self.num_torn = 0
        self._files = shards(path, kind) if path.is_dir() else [path]
        if not path.exists():
            raise UserError(f"{path} does not exist: give the output of the stage before.")
        if path.is_dir() and read_manifest(path) is None:
            raise UserError(f"{path} is no output of a stage: it has no {MANIFEST}.")

    def num_lines(self) -> int:
        """The number of lines, without a look at what they hold."""
        return sum(block.count(b"\n") for file in self._files for block in _blocks(file))

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.placed())

    def placed(self) -> Iterator[tuple[Place, Row]]:
        """Each row with its place."""
        self.num_rows = self.num_torn = 0
        for number, file in enumerate(self._files):
            offset_bytes = 0
            with file.open("rb") as lines:
                for line in lines:
                    row = self._row(line)
                    if row is None:
                        self.num_torn += 1
                    else:
                        self.num_rows += 1
                        yield Place(number, offset_bytes), row
                    offset_bytes += len(line)

    def _row(self, line: bytes) -> Row | None:
        """A file of a user's own need not end with a line feed."""
        return _row(line) if self.path.is_dir() or line.endswith(b"\n") else _row(line + b"\n")

    def at(self, places: Iterable[Place]) -> Iterator[Row]:
        """The rows at places, in their order."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(file.open("rb")) for file in self._files]
            for place in places:
                files[place.file].seek(place.offset_bytes)
                row = self._row(files[place.file].readline())
                assert row is not None, place
                yield row


class RowWriter:
    """Appends rows to a shard that this process alone writes: `with RowWriter(folder, "rank-0") as shard: …`."""

    def __init__(self, folder: Path, name: str, kind: str = ROWS):
        """Cuts a torn last line off. Raises UserError where another process writes the shard."""
        self.path = folder / f"{kind}-{name}.jsonl"
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{self.path} is being written by another process: wait until that has ended.") from None
        except OSError:  # a file system without locks
            pass
        self._size_bytes = _end_of_last_line(self._file)
        self._file.truncate(self._size_bytes)

    def append(self, row: Mapping[str, Any]) -> None:
        """The row is in the file when this returns. Raises OSError where the disk is full; what was written stays."""
        line = line_of(row)
        try:
            if (written := self._file.write(line)) != len(line):
                self._file.write(line[written:])  # the rest of it, or the error that tells why
        except OSError as error:
            self._file.truncate(self._size_bytes)
            error.filename = str(self.path)  # a write does not say where
            raise
        self._size_bytes += len(line)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            os.fsync(self._file)
        finally:
            self._file.close()


def _change(name: str, old: Any, new: Any) -> str:
    if name.startswith("--"):
        return f"{name} was {json.dumps(old)} and is {json.dumps(new)}"
    return f"{name} is another" if name != "the stage" else f"it is of the stage {old}"


def _write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    replace_file(folder / MANIFEST, json.dumps({**content, "format": _FORMAT}, indent=1) + "\n")


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as it stands in a file."""
    return json.dumps(row, default=str).encode() + b"\n"


def _row(line: bytes) -> Row | None:
    """The object in a whole line; None where there is none."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _end_of_last_line(file: Any) -> int:
    """The number of bytes up to the last line feed."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        last = file.read(end - start).rfind(b"\n")
        if last >= 0:
            return int(start + last + 1)
        end = start
    return 0


def _hash_of(path: Path) -> str:
    digest = xxhash.xxh3_128()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
