"""What a machine lacks for `benchmarks/gpu.sh`, found in seconds: packages, a GPU, memory, a compiler."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks import gpu_memory
from benchmarks.machine import ROOT

OLDEST_TORCH = (2, 11)
DISK_BYTES = 25 * 10**9  # the shape of 8 billion parameters in bf16, and room
HOST_BYTES = 40 * 10**9
NEEDED_BY_TESTS = ("pytest", "pytest-timeout", "hypothesis")
NOT_NEEDED = ("wandb", "tensorboard", "matplotlib", "tqdm")
IMPORT_NAMES = {"pyyaml": "yaml"}


@dataclass
class Lacks:
    """Sentences. needed: nothing can run without it. noted: a part is left out, or is another."""

    needed: list[str] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)


def what_is_lacking(work: Path, is_toy: bool) -> Lacks:
    """Args: work: where models are written to."""
    found = Lacks()
    for name in _required_packages():
        if problem := _problem_with(name):
            (found.noted if name in NOT_NEEDED else found.needed).append(problem)
    found.noted += [
        f"{problem}; the tests are left out" for name in NEEDED_BY_TESTS if (problem := _problem_with(name))
    ]
    if not is_toy:
        _look_at_machine(found, work)
    return found


def _required_packages() -> list[str]:
    """Of requirements.txt, those for this Python; torch comes first, as others import it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    names = []
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        requirement, _, marker = line.partition(";")
        is_for_older = "python_version <" in marker and tuple(map(int, version.split("."))) >= (3, 11)
        if (match := re.match(r"[A-Za-z0-9_.-]+", requirement)) and not is_for_older:
            names.append(match[0])
    return list(dict.fromkeys(names))


def _problem_with(name: str) -> str | None:
    try:
        version = metadata.version(name)
        importlib.import_module(IMPORT_NAMES.get(name, name.replace("-", "_")))
    except metadata.PackageNotFoundError:
        return f"{name} is not installed: carry a wheel of it (benchmarks/gpu_wheels.sh, then gpu.sh --carry FOLDER)"
    except Exception as error:  # of any kind: a package built for another torch raises what it likes
        return f"{name} {version} cannot be imported: {type(error).__name__}: {error}"
    if name == "torch" and tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        return f"torch is {version}: 2.11 is the oldest that this was made for"
    return None


def _look_at_machine(found: Lacks, work: Path) -> None:
    import torch

    if gpu_memory.total_bytes() is None:
        found.needed.append("no GPU is here (nvidia-smi finds none); GPU_BENCH_TOY=1 runs toy sizes on the CPU")
    elif not torch.cuda.is_available():
        found.needed.append(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the GPU: the driver is older than this "
            "torch needs, or the wheel is one for the CPU"
        )
    free_bytes = shutil.disk_usage(_nearest_folder(work)).free
    if free_bytes < DISK_BYTES:
        found.needed.append(
            f"{work} has {free_bytes / 1e9:.0f} GB free, {DISK_BYTES / 1e9:.0f} are needed: give --work"
        )
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory_bytes < HOST_BYTES:
        found.noted.append(f"{memory_bytes / 1e9:.0f} GB of memory: the larger shape may not load")
    if shutil.which("nvcc") is None and "CUDA_HOME" not in os.environ and not Path("/usr/local/cuda/bin/nvcc").exists():
        found.noted.append("no nvcc: FusedAdam cannot be built, torch's fused AdamW takes its place")


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
