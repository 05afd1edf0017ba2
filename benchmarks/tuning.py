"""What a run pays for tuning its layout while it trains: `python -m benchmarks.tuning` (about 10 minutes on 2 cores).

    --rounds 3    runs of each setting, in turn
    --steps 200   optimizer steps of a run
    --samples 16  of each step, of 512 tokens

The layout is left open, so that a run has candidates to try; every second run has `--train.tune_layout false`. With
compiled layers and without: a candidate for which torch.compile made another graph would cost many steps, so each run
starts with an empty cache of graphs. Counted are the seconds from the end of a run's first step, which compiles in any
layout, to the end of its last, by the clock and of the processor. Writes benchmarks/results/tuning.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine
from benchmarks.cases import NO_FLAGS, NO_LAYOUT_FLAGS
from benchmarks.contestants import Job
from benchmarks.materials import Material
from benchmarks.measures import Bench, write_json

RESULT = Path(__file__).parent / "results" / "tuning.json"
KINDS = {"layers as they are": NO_FLAGS, "compiled layers": NO_LAYOUT_FLAGS}
SETTINGS = {"tuned": {}, "not tuned": {"train.tune_layout": "false"}}
MODEL, TOKENS_A_SAMPLE = "tiny", 512

Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--result", type=Path, default=RESULT)
    choices = parser.parse_args()
    result = {"machine": machine.hardware(), "commit": machine.commit()}
    result |= {"model": MODEL, "tokens_a_sample": TOKENS_A_SAMPLE, "samples_a_step": choices.samples}
    result |= {"steps": choices.steps, "kinds": {}}
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), trl_python=None)
        job = job_of(bench, choices.steps, choices.samples)
        for kind in choices.kinds:
            rounds = [
                {name: run_once(bench, job, {**KINDS[kind], **more}) for name, more in SETTINGS.items()}
                for _ in range(choices.rounds)
            ]
            result["kinds"][kind] = found = summary(rounds)
            write_json(choices.result, result)
            print(f"{kind}, {choices.steps} steps: {in_words(found)}", flush=True)


def job_of(bench: Bench, num_steps: int, samples_a_step: int) -> Job:
    rows = Material("fixed_length", num_steps * samples_a_step, TOKENS_A_SAMPLE, MODEL)
    facts = bench.materials.rows(rows)
    return Job(bench.materials.model(MODEL), facts.path, samples_a_step, samples_a_step, TOKENS_A_SAMPLE)


def run_once(bench: Bench, job: Job, settings: dict[str, Any]) -> Run:
    with tempfile.TemporaryDirectory() as graphs:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = graphs
        run = bench.ours.run(job, settings, "run")
    records = (bench.work / "runs" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "seconds_to_first_step": run.step_seconds[0],
        "seconds": run.step_seconds[-1] - run.step_seconds[0],
        "processor_seconds": run.cpu_seconds[-1] - run.cpu_seconds[0],
        "layouts": [record for record in map(json.loads, records) if "layout" in record],
    }


def summary(rounds: list[dict[str, Run]]) -> dict[str, Any]:
    """Medians over the rounds, and the rounds."""
    found: dict[str, Any] = {}
    for what in ("seconds", "processor_seconds"):
        medians = {name: median(one[name][what] for one in rounds) for name in SETTINGS}
        found[what] = {**medians, "ratio": medians["tuned"] / medians["not tuned"]}
    return {**found, "rounds": rounds}


def in_words(found: dict[str, Any]) -> str:
    kept = [f"{one['layout']['max_tokens']:,}" for run in found["rounds"] for one in run["tuned"]["layouts"]]
    seconds = found["seconds"]
    return (
        f"{seconds['tuned']:.2f} s tuned, {seconds['not tuned']:.2f} s not tuned, ratio {seconds['ratio']:.3f} (of the "
        f"processor's seconds {found['processor_seconds']['ratio']:.3f}); tokens kept: {', '.join(kept) or 'not tried'}"
    )


if __name__ == "__main__":
    main()
