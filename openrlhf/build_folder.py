"""Where code that is compiled on first use is kept: a folder of this environment's own, built by one process at a time.

The lock is the operating system's: it goes with its process, so nobody waits for one that was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

LOCK_NAME = "openrlhf.lock"


class NoBuildFolder(OSError):
    """It cannot be written; says what to do."""


def keep_builds_apart() -> None:
    """What was built for another torch, processor, CUDA or GPU stands in another folder, unless the user names one.

    Machines and environments that share torch's default folder would compile over each other's operators.
    """
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        environment = _digest(f"{sys.prefix} {builds_are_for()}")
        gpu = "-".join(["", *_of_gpu()]).replace(" ", "")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ["TORCH_EXTENSIONS_DIR"] = str(cache / "torch_extensions" / f"openrlhf-{environment}{gpu}")


def builds_are_for() -> str:
    """The facts that decide whether code that was compiled here runs: torch, Python, the kinds of processor and GPU.

    Machines of several kinds may share a home. The processor's features are as Linux lists them for the first core.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    return ", ".join([f"torch {torch.__version__}", python, f"processor {_digest(features)}", *_of_gpu()])


def build_folder() -> Path:
    """The folder; it may not be there yet."""
    keep_builds_apart()
    return Path(os.environ["TORCH_EXTENSIONS_DIR"])


@contextmanager
def sole_builder() -> Iterator[Path]:
    """The folder; while it lasts no other process of ours builds in it. Raises NoBuildFolder."""
    folder = build_folder()
    _begin_lock(folder)
    with open(folder / LOCK_NAME, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # Lustre without the option flock, and some other file systems of clusters
            with _sole_builder_of_this_machine(folder) as own_folder:
                yield own_folder
        else:
            yield folder


def _begin_lock(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK_NAME).touch()
    except OSError as error:
        why = f"{folder} cannot be written ({error.strerror})"
        raise NoBuildFolder(f"{why}: set TORCH_EXTENSIONS_DIR to a folder that can.") from error


@contextmanager
def _sole_builder_of_this_machine(shared: Path) -> Iterator[Path]:
    """Where machines cannot lock each other out: a folder for each, and a lock on this machine's own disk."""
    own = shared if shared.name == socket.gethostname() else shared / socket.gethostname()
    own.mkdir(exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(own)
    name = f"openrlhf-{os.getuid()}-{_digest(str(own))}.lock"
    with open(Path(tempfile.gettempdir(), name), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield own


def _of_gpu() -> list[str]:
    """CUDA's version and the architecture of this process's GPU; empty without one."""
    if not torch.cuda.is_available():
        return []
    major, minor = torch.cuda.get_device_capability()
    return [f"CUDA {torch.version.cuda}", f"sm {major}{minor}"]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
