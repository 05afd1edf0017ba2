"""Ours against TRL on this machine: `python -m benchmarks.run` (from the project's root; about 55 minutes on 2 cores).

    --cases a,b     only these (benchmarks/cases.py says what they are)
    --rounds 5      each contestant runs that often, in turn: ours, TRL, ours, TRL, ...
    --trl-python P  an environment that holds benchmarks/requirements_trl.txt; without it one is made
    --ours-alone    without TRL; what the case's JSON holds of TRL stays in it, if of the same rows and processor
    --threads N     in place of the case's number (2)
    --quick         every case at a size of seconds: shows that all of it runs, the figures mean nothing

Same model, rows, precision and threads for both, each run a process of its own. The precision is bf16, or float32 where
the processor has no products of bf16 (`cases.on_processor`). First both must compute the same loss on the same rows.
After every run the case's JSON is written anew (benchmarks/results/speed_<case>.json), so that a suite that is
interrupted loses nothing. At the end `benchmarks.report` draws the plot and writes the tables.

What is counted: tokens of samples, never padding, between the end of the first step and the end of the last, by wall
clock. Memory is the largest resident size of the process, loading included. The share of the matrix units' peak is
`flops.model_flops` a second over the highest speed of products, in bf16 or float32, that is measured once a round.
Beside it stands the share of what plain products of the model's own shapes reach together (`machine.measure_peak`). For
all alike.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, report
from benchmarks.cases import CASES, Case, job_of, on_processor, quick_form
from benchmarks.flops import model_flops, plain_flops, product_flops
from benchmarks.materials import shape_of
from benchmarks.measures import MEASURES, WARM_UPS, Bench, write_json
from benchmarks.process import ContestantFailed
from benchmarks.same_loss import check_same_loss, loss_material
from benchmarks.trl_environment import default_work_folder, trl_python

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    choices = _choices()
    python = None if choices.ours_alone else choices.trl_python or trl_python(choices.work)
    bench = Bench(choices.work, python)
    facts = {
        "machine": machine.hardware(),
        "versions": {"ours": machine.our_versions(), "trl": machine.versions_of(python) if python else None},
        "commit": machine.commit(),
    }
    results = choices.results or (choices.work / "quick_results" if choices.quick else RESULTS)
    began_at = time.monotonic()
    for name in choices.cases:
        case = on_processor(CASES[name], facts["machine"]["features"])
        case = quick_form(case) if choices.quick else case
        case = replace(case, num_threads=choices.threads or case.num_threads)
        run_case(bench, case, choices.rounds, facts, results / f"speed_{name}.json", 0.05 if choices.quick else 0.3)
    _say(f"all cases: {(time.monotonic() - began_at) / 60:.1f} minutes")
    report.write_all(results, readme=None if choices.results or choices.quick else report.README)


def _choices() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=_names, default=list(CASES), help="by commas; default: all")
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 1")
    parser.add_argument("--trl-python", type=_interpreter, help="default: an environment is made")
    parser.add_argument("--ours-alone", action="store_true")
    parser.add_argument("--threads", type=int, help="default: as the case says")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=default_work_folder(), help="models, rows, caches, logs")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results, with --quick a folder in --work")
    choices = parser.parse_args()
    choices.rounds = choices.rounds or (1 if choices.quick else 5)
    choices.work = choices.work.resolve()
    return choices


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    return names


def _interpreter(text: str) -> Path:
    path = Path(os.path.abspath(text))  # a venv's interpreter is a link: it must not be followed
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is not there; leave --trl-python out to have an environment made")
    return path


def run_case(
    bench: Bench, case: Case, rounds: int, facts: dict[str, Any], path: Path, peak_seconds: float
) -> dict[str, Any]:
    """All rounds of a case; returns what its JSON file holds.

    Args:
        facts: of the machine, the versions and the commit.
        peak_seconds: how long each shape of the matrix peak is measured.
    """
    _say(f"case {case.name}: {case.title}")
    bench.materials.make([case.model], [case.material, loss_material(case)])
    job, row_facts = job_of(case, bench.materials)
    contestants = bench.contestants(case)
    result: dict[str, Any] = {
        "case": case.name,
        "title": case.title,
        "kind": case.kind,
        "began": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **facts,
        "settings": settings_of(case, contestants),
        "rows": {key: value for key, value in vars(row_facts).items() if key != "path"},
        "runs": [],
    }
    if bench.trl is None:
        keep_trl(result, path)
    if case.kind == "speed":
        result["same_loss"] = check_same_loss(bench, case)
        _say(f"  same loss: {result['same_loss']['losses']}")
    if case.kind in WARM_UPS:
        WARM_UPS[case.kind](bench, case)
    for number in range(rounds):
        if case.has_shares_of_peak:
            measured = machine.measure_peak_in_own_process(case.model, case.num_threads, peak_seconds)
            result.setdefault("matrix_peaks", []).append(measured)
            bf16, float32 = measured["peak_bf16"] / 1e9, measured["peak_float32"] / 1e9
            _say(f"  products of matrices: {bf16:,.0f} GFLOP/s in bf16, {float32:,.0f} in float32")
        for contestant in contestants:
            if number < case.max_rounds.get(contestant, rounds):
                result["runs"].append(_one_run(bench, case, contestant, number))
                result["summary"] = summarize(case, result)
                write_json(path, result)
    return result


def keep_trl(result: dict[str, Any], path: Path) -> None:
    """Takes into `result` what was measured of TRL before, on the same rows and processor and in this precision."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not earlier or _what_speed_rests_on(earlier) != _what_speed_rests_on(result):
        return
    of_trl = {name: value for name, value in earlier["settings"]["contestants"].items() if name.startswith("trl_")}
    result["settings"]["contestants"] |= of_trl
    result["versions"] = result["versions"] | {"trl": earlier["versions"]["trl"]}
    result["runs"] = [run for run in earlier["runs"] if run["contestant"] in of_trl]
    result["trl_measured_at"] = earlier["commit"]


def _what_speed_rests_on(result: dict[str, Any]) -> tuple[Any, ...]:
    machine = result["machine"]
    processor = machine["processor"], machine.get("features"), machine["cores"]
    return result["rows"], result["settings"]["precision"], *processor


def _one_run(bench: Bench, case: Case, contestant: str, number: int) -> dict[str, Any]:
    began = time.monotonic()
    try:
        figures = MEASURES[case.kind](bench, case, contestant)
    except ContestantFailed as failure:
        figures = {"failed": str(failure)[-1_000:]}
    load = [round(value, 1) for value in os.getloadavg()]
    shown = {key: round(value, 3) for key, value in figures.items() if isinstance(value, float)}
    _say(f"  round {number + 1} {contestant} ({time.monotonic() - began:.0f} s): {shown or figures}")
    return {"contestant": contestant, "round": number + 1, **figures, "load_average": load}


def settings_of(case: Case, contestants: list[str]) -> dict[str, Any]:
    """All that decides what was run, but for the machine."""
    own = {**case.ours, **case.trl}
    return {
        "model": {"name": case.model, **vars(shape_of(case.model))},
        "rows": vars(case.material),
        "batch_size": case.batch_size,
        "micro_batch_size": case.micro_batch_size,
        "max_len": case.max_len,
        "precision": case.precision,
        "num_threads": case.num_threads,
        "warm_up_steps": case.warm_up_steps,
        "contestants": {name: dict(own[name]) for name in contestants},
        **{key: value for key, value in case.facts.items() if isinstance(value, dict)},
    }


def summarize(case: Case, result: dict[str, Any]) -> dict[str, Any]:
    """Median, least and greatest of each figure, by contestant; for speed also the shares of the matrix peak."""
    summary: dict[str, Any] = {}
    names = list(result["settings"]["contestants"])
    for run in sorted(result["runs"], key=lambda run: names.index(run["contestant"])):
        if "failed" not in run:
            for key, value in run.items():
                if isinstance(value, int | float) and key != "round":
                    summary.setdefault(run["contestant"], {}).setdefault(key, []).append(value)
    summary = {name: {key: _spread(values) for key, values in figures.items()} for name, figures in summary.items()}
    if case.has_shares_of_peak:
        for figures in summary.values():
            speed = figures["tokens_per_second"]["median"]
            figures["shares_of_matrix_peak"] = shares_of_peak(case, result["rows"], speed, result["matrix_peaks"])
    return summary


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "greatest": max(values), "runs": len(values)}


def shares_of_peak(
    case: Case, rows: dict[str, Any], tokens_per_second: float, measured: list[dict[str, Any]]
) -> dict[str, float]:
    """FLOP/s over the measured peak, by both formulas of `flops`; and over what the model's own products reach.

    Args: measured: what `machine.measure_peak` found in each round.
    """
    shape, num_tokens = shape_of(case.model), rows["num_tokens"]
    tokens, targets = num_tokens, rows["num_target_tokens"]
    needed = model_flops(shape, tokens, targets, rows["sum_of_squares"]) * tokens_per_second / num_tokens
    peak = median(one["peak"] for one in measured)
    by_part = product_flops(shape, tokens, targets)
    own_seconds = sum(
        flops / median(one["model_products"][part] for one in measured) for part, flops in by_part.items()
    )
    return {
        "model_flops": needed / peak,
        "plain_flops": plain_flops(shape, num_tokens) * tokens_per_second / num_tokens / peak,
        "model_products": needed / (sum(by_part.values()) / own_seconds),
    }


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
