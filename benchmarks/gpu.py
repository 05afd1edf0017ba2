"""One GPU, under ten minutes: `bash benchmarks/gpu.sh` (or `python -m benchmarks.gpu`); writes results/gpu.json.

In this order, each as a process of its own, and the file written anew after each, so that a call that is cut short
loses nothing. What no time is left for is left out and named.

1. The peak of bf16 matrix products.
2. The log-prob path alone (`log_prob_path`).
3. Training shapes of Qwen3-0.6B and Llama-3-8B with random weights: steps of 8 samples of 1,024 tokens, 8,192 tokens in
   one micro-batch (a pack with us; TRL's batch has no padding to waste), ours and TRL: tokens/s, share of the peak
   (`flops`), the card's memory. Before that both must compute the same loss on the same rows (Qwen3's shape).
   Adam in float32 for 8 billion weights needs more than one card: the Llama shape has as many layers as fit, and the
   file says how many.
4. The longest single sample that trains a step (Qwen3-0.6B's shape, checkpointing): lengths double until one fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import gpu_memory, machine
from benchmarks.contestants import Job
from benchmarks.flops import model_flops
from benchmarks.materials import Material, ModelShape, shape_of
from benchmarks.measures import Bench, speed_of, write_json
from benchmarks.process import ContestantFailed
from benchmarks.trl_environment import default_work_folder, trl_python

RESULTS = Path(__file__).parent / "results"
SECONDS_IN_ALL = 560.0
BYTES_A_WEIGHT = 18  # bf16 weight and gradient, float32 master, two moments, and room
BYTES_A_LAYER_AND_TOKEN = 300_000  # activations of Llama-3-8B's layers, without checkpointing
CHECKPOINTING = {"model.gradient_checkpointing_enable": True}


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    models: tuple[str, ...]
    sample_tokens: int
    samples_a_step: int
    num_steps: int
    warm_up_steps: int
    log_prob_targets: int
    single_samples: tuple[int, ...]
    tokenizer_of: str
    peak_seconds: float
    seconds_a_run: float


TOY = Size(("tiny", "tiny_llama"), 32, 4, 3, 1, 64, (64,), "tiny", 0.02, 120)


def full_size() -> Size:
    llama = f"llama3_8b_{llama_layers(gpu_memory.total_bytes(), 8_192)}_layers"
    lengths = tuple(16_384 * 2**power for power in range(7))
    return Size(("qwen3_0.6b", llama), 1_024, 8, 15, 3, 8_192, lengths, "qwen3_0.6b", 0.3, 150)


def llama_layers(memory_bytes: int | None, num_tokens: int) -> int:
    """As many layers of Llama-3-8B's shape as train on the card."""
    if memory_bytes is None:
        raise SystemExit("no GPU is here (nvidia-smi finds none); GPU_BENCH_TOY=1 runs toy sizes on the CPU.")

    def needed(layers: int) -> float:
        shape = shape_of(f"llama3_8b_{layers}_layers")
        weights = shape.layer_matrix_parameters + 2 * shape.head_parameters
        return BYTES_A_WEIGHT * weights + layers * num_tokens * BYTES_A_LAYER_AND_TOKEN

    return next((layers for layers in (32, 24, 16, 8, 4, 2) if needed(layers) < 0.92 * memory_bytes), 1)


class Call:
    """One call: its size, what it has found, how much time is left."""

    def __init__(self, bench: Bench, size: Size, path: Path):
        self.bench, self.size, self._path = bench, size, path
        self._began_at = time.monotonic()
        self.found: dict[str, Any] = {"machine": machine.hardware(), "gpu_bytes": gpu_memory.total_bytes()}
        self.found |= {"versions": machine.our_versions(), "commit": machine.commit(), "size": vars(size)}

    @property
    def seconds_left(self) -> float:
        return SECONDS_IN_ALL - (time.monotonic() - self._began_at)

    def stage(self, name: str, work: Callable[[], Any], seconds_needed: float) -> Any:
        """Runs `work` if there is time, and keeps what it gives back (or why it failed)."""
        if self.seconds_left < seconds_needed:
            result: Any = {"left_out": f"{self.seconds_left:.0f} s were left"}
        else:
            try:
                result = work()
            except ContestantFailed as failure:
                result = {"failed": str(failure)[-1_000:]}
        self.found[name] = result
        self.found["seconds_in_all"] = time.monotonic() - self._began_at
        write_json(self._path, self.found)
        print(f"{self.found['seconds_in_all']:5.0f} s  {name}: {result}", flush=True)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--ours-alone", action="store_true")
    parser.add_argument("--trl-python", type=Path, help="default: an environment is made")
    parser.add_argument("--work", type=Path, default=default_work_folder())
    parser.add_argument("--results", type=Path, default=RESULTS)
    choices = parser.parse_args()
    python = None if choices.ours_alone else choices.trl_python or trl_python(choices.work)
    size = TOY if choices.toy else full_size()
    name = "gpu_toy.json" if choices.toy else "gpu.json"
    run_all(Call(Bench(choices.work.resolve(), python), size, choices.results / name))


def run_all(call: Call) -> None:
    size = call.size
    contestants = ["ours", *(["trl_defaults", "trl_best"] if call.bench.trl else [])]
    call.bench.materials.make(list(size.models), [*_materials(size), _single(size, size.single_samples[0])])
    peak_of = machine.measure_peak_in_own_process
    peak = call.stage("matrix_peak", lambda: peak_of(size.models[0], 2, size.peak_seconds), 30)["peak"]
    call.stage("log_probs", lambda: log_probs(size), 40)
    if call.bench.trl is not None:
        call.stage("same_loss", lambda: same_loss(call), 60)
    for model in size.models:
        for contestant in contestants:
            call.stage(f"train {model} {contestant}", partial(train, call, model, contestant, peak), 60)
    for contestant in contestants[:2]:
        longest_sample(call, contestant)


def _materials(size: Size) -> list[Material]:
    return [Material("fixed_length", size.samples_a_step * size.num_steps, size.sample_tokens, size.tokenizer_of)]


def _single(size: Size, num_tokens: int) -> Material:
    return Material("fixed_length", 1, num_tokens, size.tokenizer_of)


def settings_of(contestant: str, num_tokens: int, is_long: bool = False) -> Mapping[str, Any]:
    """Best documented flags of ours; TRL's defaults recompute activations, its best setting here does not."""
    if contestant == "ours":
        flags = {"ds.packing_samples": True, "ds.zero_stage": 0, "train.max_tokens_per_micro_batch": num_tokens}
        return {**flags, **(CHECKPOINTING if is_long else {})}
    return {} if contestant == "trl_defaults" else {"gradient_checkpointing": False}


def log_probs(size: Size) -> list[dict[str, Any]]:
    words = [sys.executable, "-m", "benchmarks.log_prob_path", str(size.log_prob_targets), *size.models]
    done = subprocess.run(words, capture_output=True, text=True, cwd=machine.ROOT)
    if done.returncode:
        raise ContestantFailed(done.stderr[-1_000:])
    return json.loads(done.stdout.splitlines()[-1])


def train(call: Call, model: str, contestant: str, peak: float) -> dict[str, Any]:
    """Tokens/s, share of the peak and memory of one contestant."""
    size = call.size
    facts = call.bench.materials.rows(_materials(size)[0])
    number = size.samples_a_step
    job = Job(call.bench.materials.model(model), facts.path, number, number, size.sample_tokens)
    run, memory = _run(call, job, contestant, stop_after_steps=size.num_steps)
    speed = speed_of(run, size.warm_up_steps, facts)
    shape: ModelShape = shape_of(model)
    needed = model_flops(shape, facts.num_tokens, facts.num_target_tokens, facts.sum_of_squares) / facts.num_tokens
    share = speed["tokens_per_second"] * needed / peak
    settings = dict(settings_of(contestant, number * size.sample_tokens))
    return {**speed, "share_of_matrix_peak": share, "gpu_peak_bytes": memory, "settings": settings}


def _run(call: Call, job: Job, contestant: str, is_long: bool = False, **watching: Any) -> Any:
    settings = settings_of(contestant, job.batch_size * job.max_len, is_long)
    runner = call.bench.ours if contestant == "ours" else call.bench.trl
    assert runner is not None
    watching.setdefault("timeout_seconds", min(call.size.seconds_a_run, max(20.0, call.seconds_left)))
    with gpu_memory.PeakMemory() as memory:
        run = runner.run(job, settings, f"gpu_{contestant}", **watching)
    return run, memory.bytes


def same_loss(call: Call) -> dict[str, Any]:
    """First losses in float32, on one step's samples; TRL's settings but for checkpointing are the same."""
    size = call.size
    material = Material("fixed_length", size.samples_a_step, size.sample_tokens, size.tokenizer_of)
    rows, number = call.bench.materials.rows(material), size.samples_a_step
    job = Job(call.bench.materials.model(size.models[0]), rows.path, number, number, size.sample_tokens, "fp32")
    assert call.bench.trl is not None
    losses = {
        "ours": _run(call, job, "ours", stop_after_steps=1)[0].steps[0]["loss"],
        "trl_defaults": call.bench.trl.run(job, {"logging_steps": 1}, "gpu_loss").losses[0],
    }
    return {"losses": losses, "relative_difference": abs(losses["trl_defaults"] / losses["ours"] - 1)}


def longest_sample(call: Call, contestant: str) -> None:
    """Doubles the length until a step fails, is too slow, or no time is left."""
    size = call.size
    for num_tokens in size.single_samples:
        work = partial(train_one_sample, call, contestant, num_tokens)
        if "trains" not in call.stage(f"longest {contestant} {num_tokens}", work, 30):
            return


def train_one_sample(call: Call, contestant: str, num_tokens: int) -> dict[str, Any]:
    """One optimizer step on one sample."""
    rows = call.bench.materials.rows(_single(call.size, num_tokens))
    job = Job(call.bench.materials.model(call.size.models[0]), rows.path, 1, 1, num_tokens)
    run, memory = _run(call, job, contestant, is_long=True, stop_after_steps=1)
    return {"seconds_to_first_step": run.step_seconds[0], "gpu_peak_bytes": memory, "trains": True}


if __name__ == "__main__":
    main()
