"""The kernels' library: compiled once for this processor and this torch, then loaded."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import subprocess
from pathlib import Path

import torch

from openrlhf.build_folder import builds_are_for, sole_builder

DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}  # in the kernels' names: those that they take

_HERE = Path(__file__).parent
_TORCH = Path(torch.__file__).parent
# Not -ffast-math: what is not a number must stay so. OpenMP is not linked: torch's own runs the threads.
_COMPILE = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_LINK = ("-shared", f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10")

log = logging.getLogger(__name__)


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """None where it cannot be compiled; why is said once."""
    try:
        return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("training on this CPU is slower than it could be: our kernels could not be compiled. %s", reason)
        return None


def _compiled() -> Path:
    """The library's file. Its name tells the sources, torch and the processor that it was made of and for."""
    sources = sorted(_HERE.glob("*.cpp"))
    texts = [path.read_text() for path in (*sources, *_HERE.glob("*.h"))]
    made_of = "\0".join([*texts, *_COMPILE, builds_are_for()])
    name = f"openrlhf_cpu_{hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest()}"
    with sole_builder() as folder:
        library = folder / f"{name}.so"
        if not library.is_file():
            print(f"compiling our kernels for this processor (once; a few seconds) in {folder}", flush=True)
            _build(sources, library)
    return library


def _build(sources: list[Path], library: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    objects = [library.with_name(f"{library.stem}_{path.stem}.o") for path in sources]
    for path, compiled in zip(sources, objects, strict=True):
        _run(*compiler, *_COMPILE, f"-I{_TORCH / 'include'}", "-c", str(path), "-o", str(compiled))
    unfinished = library.with_suffix(".part")
    _run(*compiler, *map(str, objects), *_LINK, "-o", str(unfinished))
    unfinished.replace(library)
    for compiled in objects:
        compiled.unlink()


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
