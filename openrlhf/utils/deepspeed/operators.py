"""DeepSpeed's operators, compiled on first use: by one process at a time, in a folder of this environment's own.

torch guards a build by a file that stays behind when its process is killed, and then waits for ever. Here a lock of the
operating system stands around every build; it goes with its process, so a file found under it is stale.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

LOCK_NAME = "openrlhf.lock"


@contextmanager
def sole_compiler(*operators: str) -> Iterator[None]:
    """While it lasts no other process of ours compiles; says so where `operators` (folder names) are not built yet."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    _ask_processor_once()
    with open(folder / LOCK_NAME, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):
            stale.unlink(missing_ok=True)
        missing = [name for name in operators if not (folder / name / f"{name}.so").is_file()]
        if missing:
            print(f"compiling DeepSpeed's {', '.join(missing)} (once; a minute or two) in {folder}", flush=True)
        yield


def keep_operators_apart() -> None:
    """Two environments that share torch's default folder would compile over each other's operators at every start."""
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        environment = hashlib.blake2b(f"{sys.prefix} {torch.__version__}".encode(), digest_size=6).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ["TORCH_EXTENSIONS_DIR"] = str(cache / "torch_extensions" / f"openrlhf-{environment}")


def compile_for_communication() -> None:
    """What DeepSpeed's communication on the CPU compiles when ranks join, done before anybody waits for anybody."""
    from deepspeed.accelerator import get_accelerator

    with sole_compiler("deepspeed_shm_comm"):
        builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
        if builder is not None and builder.is_compatible():
            builder.load(verbose=False)


def _ask_processor_once() -> None:
    """DeepSpeed's builders ask several times what processor this is; each time half a second goes to subprocesses."""
    try:
        import cpuinfo
    except ImportError:  # DeepSpeed then asks in another way
        return
    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)


def _folder() -> Path:
    keep_operators_apart()
    return Path(os.environ["TORCH_EXTENSIONS_DIR"])
