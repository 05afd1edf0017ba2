"""TRL's best setting for a case, searched: `python -m benchmarks.trl_settings [--case a] --trl-python PATH`.

Runs each candidate below once on the case's rows, prints tokens/s (by the clock, and by processor time, which says more
where the machine is not quiet), peak memory and how far its loss is from ours, and writes
benchmarks/results/trl_settings_<case>.json. A setting whose loss differs is out: that is for the reader
to see.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case, job_of
from benchmarks.measures import Bench, speed_of, write_json
from benchmarks.process import ContestantFailed
from benchmarks.same_loss import loss_job, our_loss, trl_loss
from benchmarks.trl_environment import default_work_folder

RESULTS = Path(__file__).parent / "results"
BASE = {"gradient_checkpointing": False}
SINGLE = {**BASE, "per_device_train_batch_size": 1}
GROUPED = {"train_sampling_strategy": "group_by_length"}
IN_PAIRS = {**BASE, **GROUPED, "per_device_train_batch_size": 2}
PACKED = {**SINGLE, "packing": True}
CANDIDATES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no checkpointing": BASE,
    "no checkpointing, micro-batch 1": SINGLE,
    "no checkpointing, micro-batch 2, grouped by length": IN_PAIRS,
    "no checkpointing, packed (bfd) to 512": {**PACKED, "max_length": 512, "gradient_accumulation_steps": 10},
    "no checkpointing, packed (bfd) to 448": {**PACKED, "max_length": 448, "gradient_accumulation_steps": 11},
    "no checkpointing, packed (bfd) to 1,024": {**PACKED, "max_length": 1024, "gradient_accumulation_steps": 5},
    "no checkpointing, padding free": {**BASE, "padding_free": True, "max_length": None},
    "no checkpointing, grouped by length": {**BASE, **GROUPED},
    "no checkpointing, micro-batch 4, grouped by length": {**BASE, **GROUPED, "per_device_train_batch_size": 4},
    "no checkpointing, micro-batch 4": {**BASE, "per_device_train_batch_size": 4},
    "no checkpointing, micro-batch 32": {**BASE, "per_device_train_batch_size": 32},
    "no checkpointing, micro-batch 1, compiled": {**SINGLE, "torch_compile": True},
    "no checkpointing, micro-batch 2, grouped by length, compiled": {**IN_PAIRS, "torch_compile": True},
    "no checkpointing, eager attention": {**BASE, "model_init_kwargs": {"attn_implementation": "eager"}},
    "no checkpointing, micro-batch 1, bf16 weights": {**SINGLE, "model_init_kwargs": {"dtype": "bfloat16"}},
}
# Of pairs: packing and padding_free are unknown to TRL's reward modelling and ignored by its DPO. Its sampler takes the
# lengths from a column that its trainers of pairs would remove before.
LIKE_PAIRS = {**IN_PAIRS, "remove_unused_columns": False}
CANDIDATES_OF_PAIRS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no checkpointing": BASE,
    "no checkpointing, micro-batch 1": SINGLE,
    "no checkpointing, micro-batch 2": {**BASE, "per_device_train_batch_size": 2},
    "no checkpointing, micro-batch 2, grouped by length": LIKE_PAIRS,
    "no checkpointing, micro-batch 4, grouped by length": {**LIKE_PAIRS, "per_device_train_batch_size": 4},
    "no checkpointing, micro-batch 1, compiled": {**SINGLE, "torch_compile": True},
    "no checkpointing, micro-batch 2, grouped by length, compiled": {**LIKE_PAIRS, "torch_compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="a", choices=[name for name, case in CASES.items() if case.kind == "speed"])
    parser.add_argument("--trl-python", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=default_work_folder())
    parser.add_argument("--only", nargs="*", help="these candidates alone")
    parser.add_argument("--steps", type=int, default=3, help="the first is warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout_seconds", type=float, default=600)
    choices = parser.parse_args()
    case = replace(CASES[choices.case], num_threads=choices.threads)
    num_rows = choices.steps * case.batch_size
    case = replace(case, material=replace(case.material, num_rows=num_rows))
    bench = Bench(choices.work, choices.trl_python)
    path = RESULTS / f"trl_settings_{case.name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    our_settings = next(iter(case.ours.values()))
    reference = our_loss(bench, loss_job(bench, case), our_settings)
    kept = {key: value for one in case.trl.values() for key, value in one.items() if key == "precompute_ref_log_probs"}
    for name, candidate in (CANDIDATES if case.task == "sft" else CANDIDATES_OF_PAIRS).items():
        settings = {**candidate, **kept}
        if choices.only is None or name in choices.only:
            asked = {"settings": settings, "num_threads": case.num_threads}
            found[name] = {**asked, **_try(bench, case, settings, reference, choices.timeout_seconds)}
            print(name, json.dumps(found[name]), flush=True)
            write_json(path, found)


def _try(bench: Bench, case: Case, settings: dict, reference: float, timeout_seconds: float) -> dict:
    job, facts = job_of(case, bench.materials)
    assert bench.trl is not None
    try:
        loss = trl_loss(bench, loss_job(bench, case), settings)
        run = bench.trl.run(job, settings, "trl_settings", timeout_seconds=timeout_seconds)
        # what TRL counts under packing is a pack's tokens, so the sums need not meet the file's
        speed = speed_of(run, case.warm_up_steps, facts, check_tokens=False)
    except ContestantFailed as failure:
        return {"failed": str(failure).rstrip().splitlines()[-1][:300]}
    return {**speed, "relative_difference_of_loss": abs(loss - reference) / reference}


if __name__ == "__main__":
    main()
