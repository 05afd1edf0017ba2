"""The list of a checkpoint's files with sizes and checksums. A folder without it is incomplete."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import openrlhf
from openrlhf.atomic_file import write_flushed
from openrlhf.versions import installed

MANIFEST_NAME = "manifest.json"
_FORMAT = 1
_BLOCK_BYTES = 4 << 20
_NUM_THREADS = 4


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a whole file; `name` is relative to the checkpoint."""

    name: str
    size_bytes: int
    blake2b: str


def new_checksum(data: bytes = b"") -> hashlib.blake2b:
    """The checksum of every file: BLAKE2b, 16 bytes, about 1 GB/s a core and it lets other threads run."""
    return hashlib.blake2b(data, digest_size=16)


def checksum_of(path: Path) -> str:
    """Checksum of a file's content, read block by block."""
    checksum = new_checksum()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum.update(block)
    return checksum.hexdigest()


def record_of(path: Path, folder: Path) -> FileRecord:
    """Read a file back and describe it, named relative to `folder`."""
    return FileRecord(path.relative_to(folder).as_posix(), path.stat().st_size, checksum_of(path))


def write_manifest(
    folder: Path, records: Iterable[FileRecord] | None = None, identity: dict[str, Any] | None = None
) -> None:
    """Write and flush `manifest.json`.

    Args:
        records: of files whose checksum is known already; None reads every file of the folder.
        identity: facts of the run, kept as they are.
    """
    if records is None:
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            records = list(threads.map(lambda path: record_of(path, folder), _files_of(folder)))
    content = {
        "format": _FORMAT,
        "versions": _versions(),
        "identity": identity or {},
        "files": [asdict(record) for record in sorted(records, key=lambda record: record.name)],
    }
    write_flushed(folder / MANIFEST_NAME, _with_checksum(_dump(content)))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's content. Raises ValueError where it is damaged, OSError where it cannot be read."""
    text = (folder / MANIFEST_NAME).read_bytes().decode("utf-8")
    content = json.loads(text)
    content.pop("checksum", None)
    _, _, without_checksum = text.partition(",\n")
    if text != _with_checksum("{\n" + without_checksum):
        raise ValueError("its own checksum does not fit")
    return content


def saved_identity(folder: Path) -> dict[str, Any]:
    """The identity that `write_manifest` was given."""
    return read_manifest(folder)["identity"]


def is_of_run(folder: Path, run_id: str | None) -> bool:
    """True where the folder's manifest is intact, and of the run with that id (None: of one without)."""
    try:
        return saved_identity(folder).get("run_id") == run_id
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def listed_names(folder: Path) -> list[str]:
    """Names of the files that an intact manifest lists, its own among them; none where there is no such manifest."""
    records, problems = _records_or_problems(folder)
    return [] if problems else [*(record.name for record in records if _is_inside(record.name)), MANIFEST_NAME]


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def remove_listed(folder: Path) -> bool:
    """Remove the files that the manifest lists, then it, then what this leaves empty. Nothing else is touched.

    Returns: False where something is left: a file that no run of ours has written.
    """
    for name in listed_names(folder):
        (folder / name).unlink(missing_ok=True)
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):
            path.rmdir()
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def verify(folder: Path, share: int = 0, num_shares: int = 1) -> list[str]:
    """The problems of a checkpoint, one sentence a file; empty when it is whole. Extra files are ignored.

    Args:
        share, num_shares: verify only every `num_shares`-th file from `share` on, so that ranks can divide
        the work.
    """
    records, problems = _records_or_problems(folder)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        found = threads.map(lambda record: problem_of(folder, record), records[share::num_shares])
    return problems + [problem for problem in found if problem]


def looks_whole(folder: Path) -> bool:
    """Manifest intact, every file there with its size. Reads no file's content."""
    records, problems = _records_or_problems(folder)
    return not problems and not any(problem_of(folder, record, read=False) for record in records)


def listed_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a checkpoint that its manifest lists, of those that fit a pattern: others were copied in."""
    names = (entry["name"] for entry in read_manifest(folder)["files"])
    return [folder / name for name in names if fnmatchcase(name, pattern)]


def size_bytes_of(folder: Path) -> int:
    """Bytes that the files of a folder take."""
    return sum(path.stat().st_size for path in _files_of(folder))


def _files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _records_or_problems(folder: Path) -> tuple[list[FileRecord], list[str]]:
    try:
        return [FileRecord(**entry) for entry in read_manifest(folder)["files"]], []
    except FileNotFoundError:
        return [], [f"{folder / MANIFEST_NAME} is missing: the save was interrupted"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [], [f"{folder / MANIFEST_NAME} is damaged: {error}"]


def problem_of(folder: Path, record: FileRecord, read: bool = True) -> str | None:
    """A sentence where a file is not as it was written; its content is compared only where it is `read`."""
    path = folder / record.name
    try:
        size_bytes = path.stat().st_size
        if size_bytes != record.size_bytes:
            return f"{path} has {size_bytes} bytes instead of {record.size_bytes}"
        if read and checksum_of(path) != record.blake2b:
            return f"{path} does not have the content that was written (checksum differs)"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error}"
    return None


def _with_checksum(text: str) -> str:
    """`text`, what `_dump` gives, with its checksum as the first entry, where the order of names puts it."""
    return f'{{\n "checksum": "{new_checksum(text.encode()).hexdigest()}",\n{text.removeprefix("{")[1:]}'


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _versions() -> dict[str, str]:
    """Versions of the packages that wrote the checkpoint, for people who read it later."""
    found = {package: installed(package) for package in ("torch", "deepspeed", "transformers", "safetensors", "peft")}
    return {"openrlhf": openrlhf.__version__} | {package: one for package, one in found.items() if one is not None}
