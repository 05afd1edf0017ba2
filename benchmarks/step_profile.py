"""Where a step's time goes: `python -m benchmarks.step_profile [--case a] [--steps 2] [--threads 2]` (on the CPU).

Trains the case's rows in this process and lets torch's profiler watch all steps but the first. Prints the shares of
the time by kind of work and, beneath, the costliest entries; writes
benchmarks/results/step_profile_<case>_<precision>.json.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import machine
from benchmarks.cases import CASES, Case, job_of, on_processor
from benchmarks.contestants import our_words
from benchmarks.materials import Materials
from benchmarks.measures import write_json
from benchmarks.trl_environment import default_work_folder

RESULTS = Path(__file__).parent / "results"
NUM_LINES = 25
KINDS = {  # the first pattern that the profiler's name of an entry begins with
    "products of matrices": r"aten::(mm|addmm|bmm|baddbmm|mkldnn)",
    "attention": r"_ByOurKernel|_ByTorchsKernel|aten::_scaled_dot",
    "softmax of the head": r"_WeightedLogProbs|_TargetLogProbs|aten::(_log_softmax|exp|logsumexp|gather|scatter)",
    "layers fused by torch.compile": r"Torch-Compiled|CompiledFunction|## Call|cpp_fused|graph_",
    "embeddings": r"_Lookup|aten::(embedding|index)",
    "optimizer": r"Optimizer|fused_adam|aten::(norm|_foreach|linalg_vector_norm)",
    "copies, casts, filling": r"aten::(copy_|_to_copy|to|clone|contiguous|zero_|fill_|zeros|empty|cat)",
    "sums of gradients and other element-wise work": r"aten::(add|mul|div|sub|pow|mean|sum|rsqrt|silu|neg)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="a", choices=[name for name, case in CASES.items() if case.kind == "speed"])
    parser.add_argument("--work", type=Path, default=default_work_folder())
    parser.add_argument("--steps", type=int, default=2, help="that are watched; the one before is warm-up")
    parser.add_argument("--threads", type=int, default=2)
    choices = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(choices.threads)
    hardware = machine.hardware()
    case = on_processor(CASES[choices.case], hardware["features"])
    num_rows = (choices.steps + 1) * case.batch_size
    case = replace(case, num_threads=choices.threads, material=replace(case.material, num_rows=num_rows))
    milliseconds = profile(case, choices.work.resolve())
    found = {"machine": hardware, "commit": machine.commit(), "num_threads": choices.threads}
    found |= {"precision": case.precision, "shares": shares_by_kind(milliseconds), "steps": choices.steps}
    write_json(RESULTS / f"step_profile_{case.name}_{case.precision}.json", found)
    for kind, share in found["shares"].items():
        print(f"{share:6.1%}  {kind}")
    for name, spent in milliseconds.most_common(NUM_LINES):
        print(f"{spent / choices.steps:9.1f} ms a step  {name}")


def profile(case: Case, work: Path) -> Counter[str]:
    """Milliseconds by entry of torch's profiler, what it calls left out; of all steps but the first."""
    job, _ = job_of(case, Materials(work))
    words = our_words(job, next(iter(case.ours.values())), work / "runs/profile", work / "cache")
    from torch.profiler import profile as watch

    from openrlhf.trainer.step import WindowStep

    train = importlib.import_module(f"openrlhf.cli.train_{case.task}").main
    run, watching = WindowStep.run, watch()

    def run_watched(self: WindowStep, window: Any, optimizer_step: int, **others: Any) -> Any:
        if optimizer_step == 1:
            watching.start()
        return run(self, window, optimizer_step, **others)

    with patch.object(WindowStep, "run", run_watched):
        train([*words, "--ckpt.disable_ds", "--ckpt.save_hf", "false"])
    watching.stop()
    return Counter({entry.key: entry.self_cpu_time_total / 1_000 for entry in watching.key_averages()})


def shares_by_kind(milliseconds: Counter[str]) -> dict[str, float]:
    by_kind: Counter[str] = Counter()
    for name, spent in milliseconds.items():
        by_kind[next((kind for kind, names in KINDS.items() if re.match(names, name)), "the rest")] += spent
    total = by_kind.total()
    return {kind: round(spent / total, 3) for kind, spent in by_kind.most_common()}


if __name__ == "__main__":
    main()
