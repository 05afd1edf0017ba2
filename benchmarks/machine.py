"""What a figure was measured on: hardware, versions, commit, and the matrix units' own peak.

`python -m benchmarks.machine MODEL SECONDS` measures the peak in this process and prints it as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from benchmarks.materials import ModelShape, shape_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "accelerate", "trl")
NUM_ROWS = 2_048  # tokens of a matrix product
SECONDS_A_SHAPE = 0.7  # of measuring


def hardware() -> dict:
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "architecture": platform.machine(),
        "load_average_at_the_start": [round(value, 1) for value in os.getloadavg()],
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def our_versions() -> dict:
    return {"python": platform.python_version(), **_versions()}


def versions_of(python: Path) -> dict:
    """Versions in another environment."""
    code = (
        "import json, platform\nfrom importlib import metadata\n"
        "found = {found.metadata['Name']: found.version for found in metadata.distributions()}\n"
        f"found = {{name: found[name] for name in {PACKAGES} if name in found}}\n"
        "print(json.dumps({'python': platform.python_version(), **found}))"
    )
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def _versions() -> dict:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict:
    """The commit, and whether the package differs from it."""
    return {"commit": _git("rev-parse", "HEAD"), "package_is_changed": bool(_git("status", "--porcelain", "openrlhf"))}


def _git(*words: str) -> str:
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


# --- the matrix units ------------------------------------------------------------------------------------------------


def measure_peak_in_own_process(
    model: str, num_threads: int, seconds_a_shape: float = SECONDS_A_SHAPE, timeout_seconds: float | None = None
) -> dict:
    words = [sys.executable, "-m", "benchmarks.machine", model, str(seconds_a_shape)]
    env = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT, env=env, timeout=timeout_seconds)
    return json.loads(done.stdout.splitlines()[-1])


def measure_peak(shape: ModelShape, seconds_a_shape: float) -> dict:
    """bf16 products in FLOP/s: the median over some time for each shape of the model and some squares.

    `peak` is the highest of them: what these matrix units do when a product suits them best.
    """
    import torch

    width = shape.num_attention_heads * shape.head_dim
    sizes = {
        "hidden_to_mlp": (NUM_ROWS, shape.hidden_size, shape.intermediate_size),
        "mlp_to_hidden": (NUM_ROWS, shape.intermediate_size, shape.hidden_size),
        "hidden_to_queries": (NUM_ROWS, shape.hidden_size, width),
        "hidden_to_vocabulary": (NUM_ROWS, shape.hidden_size, min(shape.vocab_size, 16_384)),
        "square_1024": (1_024, 1_024, 1_024),
        "square_2048": (2_048, 2_048, 2_048),
    }
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        sizes |= {f"square_{side}": (side, side, side) for side in (4_096, 8_192)}
    device = "cuda" if on_gpu else "cpu"
    found = {name: _flops_a_second(torch, device, seconds_a_shape, *size) for name, size in sizes.items()}
    return {"peak": max(found.values()), "num_threads": torch.get_num_threads(), "by_shape": found}


def _flops_a_second(torch, device: str, wanted_seconds: float, rows: int, inner: int, columns: int) -> float:
    left = torch.randn(rows, inner, device=device).to(torch.bfloat16)
    right = torch.randn(columns, inner, device=device).to(torch.bfloat16)
    repeats = 20 if device == "cuda" else 1

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right.t())
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    seconds()
    taken: list[float] = []
    while sum(taken) * repeats < wanted_seconds or len(taken) < 3:
        taken.append(seconds())
    return 2 * rows * inner * columns / sorted(taken)[len(taken) // 2]


if __name__ == "__main__":
    print(json.dumps(measure_peak(shape_of(sys.argv[1]), float(sys.argv[2]))))
