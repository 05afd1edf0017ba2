"""Folders and files that a command writes: whether they can be written, and that nothing of the user's lies there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf.config.disk import ADAPTER_FILE, local_path, nearest_existing
from openrlhf.config.schema import Root, values_of

if TYPE_CHECKING:
    from openrlhf.config.settings import InspectConfig, TrainingConfig

REPORT_MARK = b"<title>What will be trained</title>"  # in the head of each page that inspect_data writes
_MARK_WITHIN_BYTES = 4096
_OF_A_RUN = ("manifest.json", "run_config.yaml")
_OF_A_MODEL = ("config.json", ADAPTER_FILE)
# Last words of the flags of what is read; those of lists by commas.
_READ = ("model_name_or_path", "tokenizer_chat_template", "adapter_name_or_path")
_READ_LISTS = ("dataset", "prompts", "prompts_reward")
_CHECKPOINTS = "global_step"


def output_folders(config: TrainingConfig, world_size: int) -> Iterator[str]:
    """Folders that cannot be written, or whose writing would destroy something that is no output of a run."""
    ckpt = config.ckpt
    problems = list(writable("--ckpt.output_dir", ckpt.output_dir))
    problems += writable("--ckpt.path", ckpt.path) if not ckpt.disable_ds else _named("--ckpt.path", ckpt.path)
    if config.logger.tensorboard_dir is not None:
        problems += writable("--logger.tensorboard_dir", config.logger.tensorboard_dir)
    yield from problems
    if not problems:  # a name that no file can have is no path to look at
        yield from _another_model(config)
        yield from _among_checkpoints(config)


def report_file(config: InspectConfig, world_size: int) -> Iterator[str]:
    """A report in the place of a file that is none."""
    if config.html is None:
        return
    yield from writable("--html", str(Path(config.html).parent)) if config.html.strip() else _named("--html", "")
    path = local_path(config.html)
    if config.html.strip() and (path.is_dir() or (path.exists() and not _is_report(path))):
        yield f"--html {config.html} exists and is no report of this command: it would be lost. Give another name."


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return REPORT_MARK in file.read(_MARK_WITHIN_BYTES)
    except OSError:
        return False


def _another_model(config: TrainingConfig) -> Iterator[str]:
    name = config.ckpt.output_dir
    folder, model = local_path(name), local_path(config.model.model_name_or_path or "/")
    is_same = model.is_dir() and folder.exists() and model.samefile(folder)
    if is_same and _has(folder, _OF_A_RUN) and not config.ds.lora.is_used:
        return  # the next round of an iteration: the export moves the earlier model to earlier_run_<n>
    if is_same:
        yield (
            f"--ckpt.output_dir {name} is the folder of --model.model_name_or_path too, which "
            "would be overwritten; give another folder. To go on with a run, use --ckpt.load_enable."
        )
    else:
        yield from model_of_nobody("--ckpt.output_dir", name)


def model_of_nobody(flag: str, name: str) -> Iterator[str]:
    """A model in an output folder that no command of ours has put there."""
    folder = local_path(name)
    if _has(folder, _OF_A_MODEL) and not _has(folder, _OF_A_RUN):
        yield (
            f"{flag} {name} ({folder.resolve()}) holds a model that is no run's output, which would be overwritten; "
            "give another folder."
        )


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return any(os.path.lexists(folder / name) for name in names)


def _among_checkpoints(config: TrainingConfig) -> Iterator[str]:
    """What is read, or the output, in a folder that a run moves, replaces or removes."""
    for flag, name in (*_names_read(config), ("ckpt.output_dir", config.ckpt.output_dir)):
        for spelt in (os.path.abspath, os.path.realpath):
            within = os.path.relpath(spelt(os.path.expanduser(name)), spelt(os.path.expanduser(config.ckpt.path)))
            if within.startswith((_CHECKPOINTS, f".writing-{_CHECKPOINTS}")):
                yield (
                    f"--{flag} {name} lies among the checkpoints of --ckpt.path {config.ckpt.path}, which a run "
                    "moves and removes; give another --ckpt.path."
                )
                break


def _names_read(config: Root) -> Iterator[tuple[str, str]]:
    for flag, value in values_of(config).items():
        is_list = (word := flag.rpartition(".")[2]) in _READ_LISTS
        if (is_list or word in _READ) and isinstance(value, str):
            names = value.split(",") if is_list else [value]
            yield from ((flag, name.strip().partition("@")[0]) for name in names if name.strip())


def _named(flag: str, name: str) -> Iterator[str]:
    if not name.strip():
        yield f"{flag} is empty, which would be the working folder {Path.cwd()}; give a name."


def writable(flag: str, name: str) -> Iterator[str]:
    """Tries with a file without a name, so that nothing is left behind."""
    if not name.strip():
        yield from _named(flag, name)
        return
    if str(local_path(name)).startswith("~"):
        yield f"{flag} {name} begins with the home folder of a user who is not on this machine."
        return
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(local_path(name))  # raises for a name that no file can have
        with tempfile.TemporaryFile(dir=nearest_existing(local_path(name))):
            return
    except OSError as error:
        yield f"{flag} {name} cannot be written: {error.strerror}."
