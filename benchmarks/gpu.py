"""One GPU, under ten minutes: `bash benchmarks/gpu.sh` (or `python -m benchmarks.gpu`); writes results/gpu.json.

First it says what the machine lacks. Then, each part as a process of its own with a limit of its own, and the file
written anew after each, so that a call that is cut short loses nothing. What no time is left for is left out and named.

1. `warm_up`: a tiny model trains one step. FusedAdam is built by that, beside the making of models, before any clock.
2. The peak of bf16 matrix products.
3. The tests marked `gpu`.
4. Training shapes of Llama-3-8B and Qwen3-0.6B with random weights: steps of 32 samples of 1,024 tokens, 8,192 tokens a
   micro-batch (a pack with us; TRL's batch has no padding to waste), ours and TRL: tokens/s, share of the peak
   (`flops`), the card's memory; that both compute the same loss on the same rows (Qwen3's shape, float32).
   Adam in float32 for 8 billion weights needs 160 GB: the Llama shape has as many layers as fit (`llama_layers`), and
   the file says how many.
5. The log-prob path alone (`log_prob_path`).
6. The longest single sample that trains a step (Qwen3-0.6B's shape, checkpointing): lengths double until one fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import gpu_memory, machine
from benchmarks.contestants import Job
from benchmarks.flops import model_flops
from benchmarks.gpu_machine import what_is_lacking
from benchmarks.materials import Material, ModelShape, shape_of
from benchmarks.measures import Bench, speed_of, write_json
from benchmarks.process import ContestantFailed
from benchmarks.trl_environment import default_work_folder, trl_python

RESULTS = Path(__file__).parent / "results"
SECONDS_IN_ALL = 570.0
BYTES_A_WEIGHT = 20  # bf16 weight and gradient; float32 master, gradient and two moments
BYTES_A_LAYER_AND_TOKEN = 300_000  # activations of Llama-3-8B's layers, without checkpointing
SHARE_OF_CARD = 0.92  # CUDA's own memory, gathered pieces and gaps take the rest
CHECKPOINTING = {"model.gradient_checkpointing_enable": True}
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_liger": {"ds.use_liger_kernel": True},
    "ours_compiled": {"model.compile_layers": True},
}
TRL: dict[str, dict[str, Any]] = {"trl_defaults": {}, "trl_best": {"gradient_checkpointing": False}}


@dataclass(frozen=True)
class Size:
    """How large everything is; `limits`: seconds that a part of that name may take."""

    models: tuple[str, ...]
    sample_tokens: int
    samples_a_step: int
    samples_at_once: int
    num_steps: int
    warm_up_steps: int
    log_prob_targets: int
    single_samples: tuple[int, ...]
    tokenizer_of: str
    peak_seconds: float
    gpu_tests: str  # what pytest runs
    limits: Mapping[str, float]


LIMITS = {
    "materials": 120, "warm_up": 200, "matrix_peak": 45, "gpu_tests": 130, "train": 90, "same_loss": 80,
    "log_probs": 40, "longest": 60,
}  # fmt: skip
TOY = Size(
    ("tiny_llama",),
    32,
    4,
    2,
    3,
    1,
    64,
    (64,),
    "tiny",
    0.02,
    "tests/models/test_gpu.py",
    dict.fromkeys(LIMITS, 400),
)


def full_size() -> Size:
    llama = f"llama3_8b_{llama_layers(gpu_memory.total_bytes(), 8_192)}_layers"
    lengths = tuple(16_384 * 2**power for power in range(7))
    return Size((llama, "qwen3_0.6b"), 1_024, 32, 8, 8, 2, 8_192, lengths, "qwen3_0.6b", 0.3, "tests", LIMITS)


def llama_layers(memory_bytes: int | None, num_tokens: int) -> int:
    """As many layers of Llama-3-8B's shape as train on the card."""
    assert memory_bytes is not None, "what the machine lacks is looked at first"

    def needed(layers: int) -> float:
        shape = shape_of(f"llama3_8b_{layers}_layers")
        weights = shape.layer_matrix_parameters + 2 * shape.head_parameters
        return BYTES_A_WEIGHT * weights + layers * num_tokens * BYTES_A_LAYER_AND_TOKEN

    return next((layers for layers in (32, 24, 16, 8, 4, 2) if needed(layers) < SHARE_OF_CARD * memory_bytes), 1)


class Call:
    """One call: its size, what it has found, how much time is left."""

    def __init__(self, bench: Bench, size: Size, path: Path, seconds_in_all: float = SECONDS_IN_ALL):
        self.bench, self.size, self._path = bench, size, path
        self._seconds_in_all = seconds_in_all
        self._began_at = time.monotonic()
        self.found: dict[str, Any] = {"machine": machine.hardware(), "gpu_bytes": gpu_memory.total_bytes()}
        self.found |= {"versions": machine.our_versions(), "commit": machine.commit(), "size": vars(size)}

    @property
    def seconds_left(self) -> float:
        return self._seconds_in_all - (time.monotonic() - self._began_at)

    def stage(self, name: str, work: Callable[[float], Any], least_seconds: float = 20) -> Any:
        """Runs `work(seconds that it may take)` if there is time, and keeps what it gives back (or why it failed)."""
        began_at, limit = time.monotonic(), min(self.size.limits[name.split()[0]], self.seconds_left - 2)
        if limit < least_seconds:
            result: Any = {"left_out": f"{max(0.0, self.seconds_left):.0f} s were left"}
        else:
            try:
                result = work(limit)
            except Exception as failure:  # of any kind: the other parts still count
                result = {"failed": f"{type(failure).__name__}: {failure}"[-1_500:]}
        self.keep(name, result, time.monotonic() - began_at)
        return result

    def keep(self, name: str, result: Any, seconds: float) -> None:
        self.found[name] = result
        self.found.setdefault("seconds", {})[name] = round(seconds, 1)
        self.found["seconds_in_all"] = time.monotonic() - self._began_at
        write_json(self._path, self.found)
        print(f"{self.found['seconds_in_all']:5.0f} s  {name} ({seconds:.0f} s): {_short(result)}", flush=True)


def _short(result: Any) -> str:
    """The figures of a result, for the console."""
    if isinstance(result, dict) and "tokens_per_second" in result:
        share, memory = result["share_of_matrix_peak"], (result["gpu_peak_bytes"] or 0) / 2**30
        return f"{result['tokens_per_second']:,.0f} tokens/s, {share:.1%} of the matrix peak, {memory:.1f} GiB"
    return str(result)[:600]


def main() -> None:
    choices = _choices()
    lacks = what_is_lacking(choices.work, choices.toy)
    for kind, sentences in vars(lacks).items():
        for sentence in sentences:
            print(f"lacking ({kind}): {sentence}.", flush=True)
    if lacks.needed or choices.check:
        raise SystemExit(2 if lacks.needed else 0)
    python = None if choices.ours_alone else choices.trl_python or trl_python(choices.work)
    size = TOY if choices.toy else full_size()
    name = "gpu_toy.json" if choices.toy else "gpu.json"
    call = Call(Bench(choices.work, python), size, choices.results / name, choices.seconds)
    call.keep("lacking", lacks.noted, 0)
    run_all(call)


def _choices() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--check", action="store_true", help="only say what the machine lacks")
    parser.add_argument("--ours-alone", action="store_true")
    parser.add_argument("--trl-python", type=Path, help="default: an environment is made")
    parser.add_argument("--seconds", type=float, default=SECONDS_IN_ALL, help="for everything")
    parser.add_argument("--work", type=Path, default=default_work_folder())
    parser.add_argument("--results", type=Path, default=RESULTS)
    choices = parser.parse_args()
    choices.work = choices.work.resolve()
    return choices


def run_all(call: Call) -> None:
    size, trl = call.size, list(TRL) if call.bench.trl is not None else []
    prepare(call)
    peak = call.stage("matrix_peak", partial(measure_peak, size)).get("peak")
    call.stage("gpu_tests", partial(run_gpu_tests, size))
    has_liger = call.found["gpu_bytes"] is not None and find_spec("liger_kernel") is not None
    fastest_later = ["ours_compiled", *(["ours_liger"] if has_liger else [])]
    train_each(call, ["ours", *trl[:1]], peak)
    if trl:
        call.stage("same_loss", partial(same_loss, call))
    train_each(call, [*fastest_later, *trl[1:]], peak)
    call.stage("log_probs", partial(log_probs, size))
    for contestant in ["ours", *trl[:1]]:
        longest_sample(call, contestant)


def prepare(call: Call) -> None:
    """Models and rows; beside their making, the compiling of operators."""
    call.stage("materials tiny", partial(make_materials, call, ["tiny"], [TINY_ROWS]))
    with ThreadPoolExecutor(1) as beside:
        warm_up = beside.submit(_timed, partial(train_tiny, call, min(call.size.limits["warm_up"], call.seconds_left)))
        rows = [_material(call.size), _one_step(call.size), _single(call.size, call.size.single_samples[0])]
        call.stage("materials", partial(make_materials, call, list(call.size.models), rows))
        call.keep("warm_up", *warm_up.result())


def train_each(call: Call, contestants: list[str], peak: float | None) -> None:
    for model in call.size.models:
        for contestant in contestants:
            call.stage(f"train {model} {contestant}", partial(train, call, model, contestant, peak))


# --- the parts -------------------------------------------------------------------------------------------------------

TINY_ROWS = Material("fixed_length", 8, 32, "tiny")


def make_materials(call: Call, models: list[str], rows: list[Material], seconds: float) -> list[str]:
    call.bench.materials.make(models, rows, timeout_seconds=seconds)
    return [*models, *(material.name for material in rows)]


def train_tiny(call: Call, seconds: float) -> dict[str, Any]:
    """Operators that are compiled on first use are compiled here: FusedAdam takes nvcc a minute."""
    job = Job(call.bench.materials.model("tiny"), call.bench.materials.rows(TINY_ROWS).path, 4, 4, 32)
    run = call.bench.ours.run(job, settings_of("ours", 128), "gpu_warm_up", timeout_seconds=seconds)
    return {"seconds_to_first_step": run.step_seconds[0]}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began_at = time.monotonic()
    try:
        result = work()
    except ContestantFailed as failure:
        result = {"failed": str(failure)[-1_500:]}
    return result, time.monotonic() - began_at


def measure_peak(size: Size, seconds: float) -> dict[str, Any]:
    return machine.measure_peak_in_own_process(size.models[0], 2, size.peak_seconds, timeout_seconds=seconds)


def run_gpu_tests(size: Size, seconds: float) -> dict[str, Any]:
    """What pytest says. Without a GPU the tests are skipped."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", size.gpu_tests, "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=machine.ROOT, timeout=seconds)
    return {"exit_code": done.returncode, "said": done.stdout[-6_000:], "errors": done.stderr[-500:]}


def _material(size: Size) -> Material:
    return Material("fixed_length", size.samples_a_step * size.num_steps, size.sample_tokens, size.tokenizer_of)


def _one_step(size: Size) -> Material:
    return Material("fixed_length", size.samples_at_once, size.sample_tokens, size.tokenizer_of)


def _single(size: Size, num_tokens: int) -> Material:
    return Material("fixed_length", 1, num_tokens, size.tokenizer_of)


def settings_of(contestant: str, num_tokens: int, is_long: bool = False) -> Mapping[str, Any]:
    """Best documented flags of ours; TRL's defaults recompute activations, its best setting here does not."""
    if contestant in TRL:
        return TRL[contestant]
    flags = {"ds.packing_samples": True, "ds.zero_stage": 0, "train.max_tokens_per_micro_batch": num_tokens}
    return {**flags, **OURS[contestant], **(CHECKPOINTING if is_long else {})}


def log_probs(size: Size, seconds: float) -> list[dict[str, Any]]:
    words = [sys.executable, "-m", "benchmarks.log_prob_path", str(size.log_prob_targets), *size.models]
    done = subprocess.run(words, capture_output=True, text=True, cwd=machine.ROOT, timeout=seconds)
    if done.returncode:
        raise ContestantFailed(done.stderr[-1_000:])
    return json.loads(done.stdout.splitlines()[-1])


def train(call: Call, model: str, contestant: str, peak: float | None, seconds: float) -> dict[str, Any]:
    """Tokens/s, share of the peak and memory of one contestant."""
    size = call.size
    facts = call.bench.materials.rows(_material(size))
    job = Job(
        call.bench.materials.model(model), facts.path, size.samples_a_step, size.samples_at_once, size.sample_tokens
    )
    run, memory = _run(call, job, contestant, seconds, stop_after_steps=size.num_steps)
    speed = speed_of(run, size.warm_up_steps, facts)
    shape: ModelShape = shape_of(model)
    needed = model_flops(shape, facts.num_tokens, facts.num_target_tokens, facts.sum_of_squares) / facts.num_tokens
    share = speed["tokens_per_second"] * needed / peak if peak else float("nan")
    settings = dict(settings_of(contestant, size.samples_at_once * size.sample_tokens))
    return {**speed, "share_of_matrix_peak": share, "gpu_peak_bytes": memory, "settings": settings}


def _run(call: Call, job: Job, contestant: str, seconds: float, is_long: bool = False, **watching: Any) -> Any:
    settings = settings_of(contestant, job.micro_batch_size * job.max_len, is_long)
    runner = call.bench.trl if contestant in TRL else call.bench.ours
    assert runner is not None
    with gpu_memory.PeakMemory() as memory:
        run = runner.run(job, settings, f"gpu_{contestant}", timeout_seconds=seconds, **watching)
    return run, memory.bytes


def same_loss(call: Call, seconds: float) -> dict[str, Any]:
    """First losses in float32, on the same samples; TRL's settings but for checkpointing are the same."""
    size, trl = call.size, call.bench.trl
    rows, number = call.bench.materials.rows(_one_step(size)), size.samples_at_once
    job = Job(call.bench.materials.model(size.models[-1]), rows.path, number, number, size.sample_tokens, "fp32")
    assert trl is not None
    losses = {
        "ours": _run(call, job, "ours", seconds / 2, stop_after_steps=1)[0].steps[0]["loss"],
        "trl_defaults": trl.run(job, {"logging_steps": 1}, "gpu_loss", timeout_seconds=seconds / 2).losses[0],
    }
    return {"losses": losses, "relative_difference": abs(losses["trl_defaults"] / losses["ours"] - 1)}


def longest_sample(call: Call, contestant: str) -> None:
    """Doubles the length until a step fails, is too slow, or no time is left."""
    for num_tokens in call.size.single_samples:
        work = partial(train_one_sample, call, contestant, num_tokens)
        if "trains" not in call.stage(f"longest {contestant} {num_tokens}", work):
            return


def train_one_sample(call: Call, contestant: str, num_tokens: int, seconds: float) -> dict[str, Any]:
    """One optimizer step on one sample."""
    rows = call.bench.materials.rows(_single(call.size, num_tokens))
    job = Job(call.bench.materials.model(call.size.models[-1]), rows.path, 1, 1, num_tokens)
    run, memory = _run(call, job, contestant, seconds, is_long=True, stop_after_steps=1)
    return {"seconds_to_first_step": run.step_seconds[0], "gpu_peak_bytes": memory, "trains": True}


if __name__ == "__main__":
    main()
