"""Files and folders that settings name: checks of what must be there, and kinds of data files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from openrlhf.errors import without_logins

if TYPE_CHECKING:
    from openrlhf.config.settings import TrainingConfig


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
IS_PATTERN = "is a pattern, and patterns are not expanded: give the folder, or its files by commas."  # behind a name
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
COMPRESSIONS = (".gz", ".zst")
ADAPTER_FILE = "adapter_config.json"  # of PEFT
HIDDEN = "***"  # stands in files and messages where a command has a key
SECRET_NAME = re.compile(r"wandb|api[-_]?key|token(?!s|iz)|secret|password", re.IGNORECASE)  # in that of a flag
_QUERY = re.compile(r"(\w:/(?:(?!,\s*https?://)[^?#\s])*)[?#]\S*", re.IGNORECASE)
_QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_WORD = re.compile(rf"""(?:\\.|{_QUOTED.pattern}|[^\s'"\\])+""", re.DOTALL)  # of a shell


def local_path(name: str | PurePath) -> Path:
    """The path that a name means here, with ~ for a home folder; that of a user who is not there stays as it is."""
    return Path(os.path.expanduser(name))


def data_file_kind(name: str | PurePath) -> str | None:
    """The kind of a data file by its name, compressed or not; None for a name that is of no data file."""
    path = PurePath(name)
    suffix = path.with_suffix("").suffix if path.suffix.lower() in COMPRESSIONS else path.suffix
    return DATA_SUFFIXES.get(suffix.lower())


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is only the pointer that Git LFS leaves where it has not fetched the file. OSError as of open."""
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def split_names(names: str) -> list[str]:
    """The entries of a comma list of files, folders and hub names; a comma may belong to the name of one that exists.

    Of several ways to read a list, the one whose first entries are shortest holds.
    """
    parts, found = names.split(","), []
    while parts:
        ends = (end for end in range(1, len(parts) + 1) if _exists(",".join(parts[:end]).strip()))
        end = next(ends, 1)
        found.append(",".join(parts[:end]).strip())
        parts = parts[end:]
    return [name for name in found if name]


def _exists(name: str) -> bool:
    """Whether a name, or what stands before its subfolder's `@`, is of a file or folder."""
    try:
        return bool(name) and (local_path(name).exists() or _exists(name.rpartition("@")[0]))
    except (OSError, ValueError):  # a name that no file can have
        return False


def model_folder(config: TrainingConfig, world_size: int) -> Iterator[str]:
    """A model folder that is not there, or holds none."""
    yield from folder_of_model("--model.model_name_or_path", config.model.model_name_or_path, is_trained=True)


def folder_of_model(flag: str, name: str, is_trained: bool = False) -> Iterator[str]:
    """The same of any flag."""
    folder = local_path(name)
    if not name:
        return
    if folder.is_dir():
        if (folder / ADAPTER_FILE).is_file():
            yield f"{flag} {name} {is_adapter(folder, is_trained)}"
        elif not (folder / "config.json").is_file():
            yield f"{flag} {name} is no model: it has no config.json. Give the folder that save_pretrained wrote."
    elif folder.exists():
        yield f"{flag} {name} is a file; give the folder of a Hugging Face model."
    elif _looks_local(name):
        yield f"{flag} {name} does not exist. {_where_it_ends(folder)}"


def data_sources(config: TrainingConfig, world_size: int) -> Iterator[str]:
    """Data files that are not there."""
    for flag, names in (
        ("--data.dataset", config.data.dataset),
        ("--eval.dataset", config.eval.dataset or ""),
    ):
        for name in split_names(names):
            yield from data_source(flag, name)


def is_adapter(folder: Path, is_trained: bool = True) -> str:
    """What to do with a folder that holds an adapter where a model, which is trained or not, is asked for; to follow
    its name."""
    try:
        base = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    of_base = f" of {base}" if base else ""
    to_train = "give its base model, and the adapter as --ds.lora.adapter_name_or_path to train it on; or "
    merge = "merge the two by openrlhf.cli.lora_combiner, and give the result."
    return f"is an adapter{of_base}: {to_train if is_trained else ''}{merge}"


def data_source(flag: str, name: str) -> Iterator[str]:
    """A data file that is not there."""
    source, _, subfolder = name.partition("@")
    path = local_path(source)
    if local_path(name).exists():
        return
    if "*" in source and not path.exists():
        yield f"{flag} {name} {IS_PATTERN}"
    elif path.exists():
        if subfolder and not (path / subfolder).exists():
            yield f"{flag} {name}: the folder {source} holds no {subfolder}."
    elif _looks_local(source) or _is_named_like_data(source):
        yield f"{flag} {name} does not exist. {_where_it_ends(path)}"


def _is_named_like_data(name: str) -> bool:
    """Whether it ends like a data file, be it compressed in a way that cannot be read."""
    return any(map(data_file_kind, (name, PurePath(name).stem)))


def _looks_local(name: str) -> bool:
    """Whether it is a path: begins like one, has several slashes, or its first folder exists."""
    if "://" in name:
        return False
    first, _, rest = name.partition("/")
    return name.startswith((".", "/", "~")) or "/" in rest or (bool(rest) and Path(first).is_dir())


def _where_it_ends(path: Path) -> str:
    """Where on the way the path stops being there."""
    last = nearest_existing(path)
    return f"It was read as a path, relative to {Path.cwd()}; of it {last} exists."


def nearest_existing(path: Path) -> Path:
    """The path itself, or the first of its parents that exists."""
    return next(folder for folder in (path, *path.parents, Path("/")) if _exists(str(folder)))


def parts_of(setting: str | None) -> list[str]:
    """The parts of a comma list none of which holds a comma."""
    return [part.strip() for part in (setting or "").split(",") if part.strip()]


def is_address(name: str) -> bool:
    """Of a server, with http:// or https:// before it."""
    try:
        parts = urlsplit(name)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def begins_as_address(name: str) -> bool:
    """Whether an address is meant, be it a mistyped one."""
    return name.lower().startswith(("http://", "https://"))


def without_secrets(text: str) -> str:
    """For files and messages: addresses without login and query, where tokens stand; a command without its keys."""
    return _without_keys(_QUERY.sub(r"\1", without_logins(text)))


def _without_keys(command: str) -> str:
    """Hides all words from a flag that sounds like a secret to the next flag, and what NAME=… gives such a name."""
    is_key = False

    def shown(word: re.Match[str]) -> str:
        nonlocal is_key
        bare = re.sub(r"""[\\'"]""", "", word[0])
        if is_key and not bare.startswith("--"):
            return HIDDEN
        name, equals, _ = bare.partition("=")
        sounds_secret = bool(re.fullmatch(r"[\w.-]+", name) and SECRET_NAME.search(name))
        is_key = sounds_secret and not equals and name.startswith("-")
        if sounds_secret and equals:
            return f"{name}={HIDDEN}"
        return _QUOTED.sub(lambda inner: inner[0][0] + _without_keys(inner[0][1:-1]) + inner[0][-1], word[0])

    return _WORD.sub(shown, command)


def program(flag: str, command: str, example: str) -> Iterator[str]:
    """A command line whose program is not there."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        yield f"{flag} is no command line: {error}."  # which of its words is a key, nobody can say
        return
    if not words:
        yield f"{flag} is empty: give a command, as in {example}."
    elif words[0] not in ("python", "python3") and shutil.which(words[0]) is None:
        said = without_secrets(command)
        yield f"{flag} {said!r}: there is no program {without_secrets(words[0])}. Give another, as in {example}."
