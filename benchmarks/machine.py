"""What a figure was measured on: hardware, versions, commit, and the speed of products of matrices.

`python -m benchmarks.machine MODEL SECONDS` measures the peak in this process and prints it as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.materials import ModelShape, shape_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "accelerate", "trl")
FEATURES = {"avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_tile"}  # for products
NUM_ROWS = 2_048  # tokens of a matrix product
SECONDS_A_SHAPE = 0.3  # of measuring


def hardware() -> dict:
    facts = _facts_of_processor()
    return {
        "processor": facts.get("model name", platform.processor()),
        "features": sorted(FEATURES.intersection(facts.get("flags", "").split())),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "architecture": platform.machine(),
        "load_average_at_the_start": [round(value, 1) for value in os.getloadavg()],
    }


def _facts_of_processor() -> dict[str, str]:
    """What Linux tells of one core."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = [line.split(":", 1) for line in file if ":" in line]
    return {name.strip(): value.strip() for name, value in lines}


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
    """Products of matrices in FLOP/s, each the median over some time.

    `peak_bf16` is the highest in bf16, of some shapes of the model and some squares: what these matrix units do when a
    product suits them best. `peak_float32` is the same in float32, `peak` the highest. Where the processor has no
    products of bf16, `peak_bf16` is of torch's own, and `peak_bf16_made_in_float32` of what ours makes of them.
    `model_products` is what all products reach that a training step makes with the weights of the layers, and with
    those of the head: forward, and both of the backward pass, each as a plain product in the faster of the two
    precisions and nothing beside it. Attention is not among them.
    """
    import torch

    from openrlhf.engine.patches.float32_products import multiply_in_float32
    from openrlhf.engine.processor import has_bfloat16_products

    width = shape.num_attention_heads * shape.head_dim
    vocabulary = min(shape.vocab_size, 16_384)
    sizes = {
        "hidden_to_mlp": (NUM_ROWS, shape.hidden_size, shape.intermediate_size),
        "mlp_to_hidden": (NUM_ROWS, shape.intermediate_size, shape.hidden_size),
        "hidden_to_queries": (NUM_ROWS, shape.hidden_size, width),
        "hidden_to_vocabulary": (NUM_ROWS, shape.hidden_size, vocabulary),
        "square_1024": (1_024, 1_024, 1_024),
        "square_2048": (2_048, 2_048, 2_048),
    }
    if torch.cuda.is_available():
        sizes |= {f"square_{side}": (side, side, side) for side in (4_096, 8_192)}
    has_bf16 = torch.cuda.is_available() or has_bfloat16_products()
    clock = _Clock(torch, seconds_a_shape, torch.bfloat16 if has_bf16 else torch.float32)
    sizes_bf16 = sizes if has_bf16 else {"square_512": (512, 512, 512)}  # where they crawl, a larger one takes a minute
    by_shape = {name: clock.rate(*size, torch.bfloat16) for name, size in sizes_bf16.items()}
    peaks = {
        "peak_bf16": max(by_shape.values()),
        "peak_float32": max(clock.rate(*size, torch.float32) for size in sizes.values()),
    }
    head = (shape.hidden_size, vocabulary)
    if not has_bf16 and multiply_in_float32():
        peaks["peak_bf16_made_in_float32"] = max(clock.rate(*size, torch.bfloat16) for size in sizes.values())
    return {
        "peak": max(peaks.values()),
        **peaks,
        "model_products": {"layers": clock.training_rate(shape.layer_matrices), "head": clock.training_rate([head])},
        "num_threads": torch.get_num_threads(),
        "by_shape": by_shape,
    }


class _Clock:
    """Times products of matrices, with the result's memory there already."""

    def __init__(self, torch: Any, wanted_seconds: float, dtype: Any):
        """Args: dtype: of `training_rate`."""
        self._torch, self._wanted_seconds, self._dtype = torch, wanted_seconds, dtype
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._repeats = 20 if self._device == "cuda" else 1

    def rate(self, rows: int, inner: int, columns: int, dtype: Any) -> float:
        """FLOP/s of (rows, inner) times (columns, inner) transposed."""
        left, right = self._random(rows, inner, dtype), self._random(columns, inner, dtype)
        return 2 * rows * inner * columns / self._seconds(left, right.t())

    def training_rate(self, weights: list[tuple[int, int]]) -> float:
        """FLOP/s of all products with weights (inputs, outputs): output, gradient of the input and of the weight."""
        seconds = sum(count * self._training_seconds(*size) for size, count in Counter(weights).items())
        return 6 * NUM_ROWS * sum(inputs * outputs for inputs, outputs in weights) / seconds

    def _training_seconds(self, inputs: int, outputs: int) -> float:
        hidden, weight = self._random(NUM_ROWS, inputs), self._random(outputs, inputs)
        grad = self._random(NUM_ROWS, outputs)
        return sum(itertools.starmap(self._seconds, ((hidden, weight.t()), (grad, weight), (grad.t(), hidden))))

    def _random(self, rows: int, columns: int, dtype: Any = None) -> Any:
        return self._torch.randn(rows, columns, device=self._device).to(dtype or self._dtype)

    def _seconds(self, left: Any, right: Any) -> float:
        result = left.new_empty(left.shape[0], right.shape[1])
        self._seconds_once(left, right, result)
        taken: list[float] = []
        while sum(taken) * self._repeats < self._wanted_seconds or len(taken) < 3:
            taken.append(self._seconds_once(left, right, result))
        return median(taken)

    def _seconds_once(self, left: Any, right: Any, result: Any) -> float:
        start = time.perf_counter()
        for _ in range(self._repeats):
            self._torch.mm(left, right, out=result)
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return (time.perf_counter() - start) / self._repeats


if __name__ == "__main__":
    print(json.dumps(measure_peak(shape_of(sys.argv[1]), float(sys.argv[2]))))
