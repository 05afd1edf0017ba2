"""Time and peak memory of selecting from scored answers: `python -m benchmarks.select` (from the project's root).

Each policy runs in a process of its own, as the command does: reading, picking, writing, report. The answers come from
a generator: eight to a prompt, 80 to 350 characters each, with equations. Writes benchmarks/results/select.json.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.data_preparation import machine, peak_bytes, used_cpu_seconds

RESULTS = Path(__file__).parent / "results" / "select.json"
ANSWERS_A_PROMPT = 8
POLICIES = {
    "best_of_n": {},
    "top_k, distinct equations": {"policy": "top_k", "k": 4, "dedupe": "equations", "min_reward": 0.5},
    "threshold": {"policy": "threshold", "min_reward": 0.5, "dedupe": "text"},
    "pairs": {"policy": "pairs", "k": 2},
    "random, of like lengths": {"policy": "random", "match_lengths": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_answers", type=int, default=1_000_000)
    parser.add_argument("--measure", help="settings of one selection, as JSON: select and print what it took")
    choices = parser.parse_args()
    if choices.measure:
        print(json.dumps(measure(json.loads(choices.measure))))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = write_answers(Path(folder) / "scores.jsonl", choices.num_answers)
        runs = {name: _in_own_process(source, name, settings) for name, settings in POLICIES.items()}
        results = {"machine": machine(), "num_answers": choices.num_answers, "file_bytes": source.stat().st_size}
    results["runs"] = runs
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def _in_own_process(source: Path, name: str, settings: dict) -> dict:
    given = {**settings, "input": str(source), "output": str(source.parent / name / "selected.jsonl")}
    if settings.get("match_lengths"):
        given["like"] = str(source.parent / "best_of_n" / "selected.jsonl")
    words = [sys.executable, "-m", "benchmarks.select", "--measure", json.dumps(given)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(settings: dict) -> dict:
    """One selection, imports included."""
    start = time.monotonic()
    from openrlhf.config import SelectConfig, SelectSettings
    from openrlhf.rejection.select import select

    stats = select(SelectConfig(select=SelectSettings(**settings)))
    return {
        "num_rows": stats["num_rows"],
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(used_cpu_seconds(), 1),
        "peak_bytes": peak_bytes(resource.RUSAGE_SELF),
    }


def write_answers(path: Path, num_answers: int) -> Path:
    """Scored answers, in no order."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in generator.sample(range(num_answers), num_answers):
            prompt, index = divmod(number, ANSWERS_A_PROMPT)
            file.write(json.dumps(_answer(generator, prompt, index)) + "\n")
    return path


def _answer(generator: random.Random, prompt: int, index: int) -> dict:
    steps = []
    for _ in range(generator.randint(2, 8)):
        first, second = generator.randint(1, 9), generator.randint(1, 9)
        steps.append(f"There are {first} and {second}, so {first} + {second} = {first + second}.")
    return {
        "prompt_id": f"{prompt:032x}",
        "sample_index": index,
        "prompt": f"How many are there in box {prompt}?",
        "response": "\n".join(steps),
        "finish_reason": "length" if generator.random() < 0.05 else "stop",
        "seed": generator.getrandbits(31),
        "num_tokens": 12 * len(steps) + generator.randint(0, 9),
        "model": "0" * 32,
        "label": "7",
        "reward": generator.choice([None, 0.0, 0.0, 0.0, 1.0, 1.0]),
        "rewards": {"correct": 1.0},
        "reason": None,
    }


if __name__ == "__main__":
    main()
