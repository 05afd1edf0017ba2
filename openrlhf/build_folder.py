"""Where code that is compiled on first use is kept: a folder of this environment's own, built by one process at a time.

The lock is the operating system's: it goes with its process, so nobody waits for one that was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

LOCK_NAME = "openrlhf.lock"


def keep_builds_apart() -> None:
    """Two environments that share torch's default folder would compile over each other's operators at every start."""
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        environment = hashlib.blake2b(f"{sys.prefix} {torch.__version__}".encode(), digest_size=6).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ["TORCH_EXTENSIONS_DIR"] = str(cache / "torch_extensions" / f"openrlhf-{environment}")


def builds_are_for() -> str:
    """The facts that decide whether code that was compiled here runs: this torch, this Python, this kind of processor.

    Machines of several kinds may share a home. The processor's features are as Linux lists them for the first core.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    digest = hashlib.blake2b(features.encode(), digest_size=6).hexdigest()
    return f"torch {torch.__version__}, Python {sys.version_info.major}.{sys.version_info.minor}, processor {digest}"


@contextmanager
def sole_builder() -> Iterator[Path]:
    """The folder; while it lasts no other process of ours builds in it."""
    keep_builds_apart()
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_NAME, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
