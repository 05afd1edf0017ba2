"""Time and peak memory of preparing chat rows: `python -m benchmarks.data_preparation` (from the project's root).

Each size runs in a process of its own, so that peaks do not mix. Conversations come from a generator, tokens from a
tiny tokenizer, so nothing has to be fetched. Writes benchmarks/results/data_preparation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "data_preparation.json"
SIZES = (15_000, 50_000, 150_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=int, help="measure one size in this process and print the result")
    parser.add_argument("--num_processors", type=int, default=os.cpu_count())
    choices = parser.parse_args()
    if choices.measure:
        print(json.dumps(measure(choices.measure, choices.num_processors)))
        return
    runs = [_in_own_process(size, choices.num_processors) for size in SIZES]
    results = {"machine": machine(), "num_processors": choices.num_processors, "runs": runs}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def machine() -> dict:
    load = [round(value, 1) for value in os.getloadavg()]
    facts = {"load_average_at_the_end": load, "cpu_cores": os.cpu_count()}
    return {**facts, "architecture": platform.machine(), "python": platform.python_version()}


def _in_own_process(size: int, num_processors: int) -> dict:
    words = [sys.executable, "-m", "benchmarks.data_preparation", "--measure", str(size)]
    words += ["--num_processors", str(num_processors)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(num_rows: int, num_processors: int) -> dict:
    """Prepares `num_rows` conversations once cold and once from the cache."""
    from openrlhf.config import DataConfig
    from openrlhf.datasets import prepare_sft_dataset
    from tests.helpers.tokenizers import CHATML, tiny_tokenizer

    tokenizer = tiny_tokenizer(CHATML)
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder) / "rows.jsonl", num_rows)
        data = DataConfig(
            dataset=str(path), multiturn=True, num_processors=num_processors, cache_dir=str(Path(folder) / "cache")
        )
        before_bytes = peak_bytes(resource.RUSAGE_SELF)
        seconds, cpu_seconds, cpu_before = [], 0.0, used_cpu_seconds()
        for _ in range(2):
            start = time.monotonic()
            dataset = prepare_sft_dataset(data, tokenizer)
            seconds.append(time.monotonic() - start)
            cpu_seconds = cpu_seconds or used_cpu_seconds() - cpu_before
        return {
            "num_rows": num_rows,
            "file_bytes": path.stat().st_size,
            "num_tokens": dataset.report.num_tokens,
            "num_target_tokens": dataset.report.num_target_tokens,
            "prepare_seconds": round(seconds[0], 2),
            "prepare_cpu_seconds": round(cpu_seconds, 2),
            "rows_per_second": round(num_rows / seconds[0]),
            "second_start_seconds": round(seconds[1], 3),
            "peak_bytes_before": before_bytes,
            "peak_bytes": peak_bytes(resource.RUSAGE_SELF),
            "peak_bytes_largest_worker": peak_bytes(resource.RUSAGE_CHILDREN),
        }


def used_cpu_seconds() -> float:
    """Processor time so far of this process and its ended children; does not depend on what else the machine does."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def peak_bytes(who: int) -> int:
    """Largest resident size so far of this process or of its largest ended child (Linux counts in KiB)."""
    return resource.getrusage(who).ru_maxrss * 1024


def write_rows(path: Path, num_rows: int) -> Path:
    """Conversations of one to four exchanges about sums."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_rows):
            messages = []
            for _ in range(generator.randint(1, 4)):
                first, second = generator.randint(1, 999), generator.randint(1, 999)
                messages.append({"role": "user", "content": f"What is the sum of {first} and {second}, please?"})
                messages.append(
                    {"role": "assistant", "content": f"The sum of {first} and {second} is {first + second}."}
                )
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


if __name__ == "__main__":
    main()
