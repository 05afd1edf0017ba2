"""What the driver of a run on Ray does in a second, and what a range costs: `python -m benchmarks.ray_rates`.

The driver reads prompts and the answers that are there, and cuts ranges; workers are given nothing to do here, so that
what Ray itself takes is seen. Writes benchmarks/results/ray_rates.json.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data_preparation import machine
from benchmarks.select import write_answers

RESULTS = Path(__file__).parent / "results" / "ray_rates.json"
NUM_PROMPTS, ANSWERS_A_PROMPT, NUM_RANGES = 100_000, 8, 300
PROMPT_WORDS, ANSWER_CHARACTERS = 40, 2000  # an answer of about 500 tokens


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {
            "machine": machine(),
            "prompts": prompts(folder),
            "answers": answers(folder),
            "scores": scores(folder),
            "ray": ray_itself(),
        }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def timed(work: Callable[[], int]) -> dict[str, Any]:
    """Of what `work` counts: the number, and how many a second."""
    wall, cpu = time.monotonic(), time.process_time()
    number = work()
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    return {"number": number, "per_cpu_second": round(number / cpu), "per_second": round(number / wall)}


def prompts(folder: Path) -> dict[str, Any]:
    """Prompts read, known and cut into ranges, as generate's driver does."""
    from openrlhf.config import GenerateConfig, parse_config
    from openrlhf.rejection.generate import _Known, _Share
    from openrlhf.rejection.prompts import Prompts

    chance = random.Random(0)
    with (folder / "prompts.jsonl").open("w") as file:
        for _ in range(NUM_PROMPTS):
            words = " ".join(str(chance.randrange(10**6)) for _ in range(PROMPT_WORDS))
            file.write(json.dumps({"prompt": words, "label": "1"}) + "\n")
    given = ["--model.model_name_or_path", "m", "--data.dataset", str(folder / "prompts.jsonl"), "--generate.engine"]
    given += ["openai", "--generate.url", "http://localhost:1/v1", "--generate.n", str(ANSWERS_A_PROMPT)]
    config = parse_config(GenerateConfig, given)
    read = Prompts(config.data)
    share = _Share(read, _Known(), config, 0, 1)
    tracemalloc.start()
    sum(1 for _ in read)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "read": timed(lambda: sum(1 for _ in read)),
        "cut_into_ranges": timed(lambda: sum(len({one.prompt.prompt_id for one in given}) for given in share.ranges())),
        "memory_bytes_a_prompt": round(peak_bytes / NUM_PROMPTS),
    }


def answers(folder: Path) -> dict[str, Any]:
    """What a run that goes on reads first, of answers of a common length."""
    from openrlhf.rejection.generate import _Known
    from openrlhf.rejection.prompts import seed_of
    from openrlhf.rejection.records import Identity, open_output, write_shard

    output, num_prompts = folder / "answers", NUM_PROMPTS // 10
    open_output(output, Identity("generate"), "--generate.output")
    rows = (
        {
            "prompt_id": f"{prompt:032x}", "sample_index": index, "prompt": "x" * 240,
            "response": "y" * ANSWER_CHARACTERS, "finish_reason": "stop", "seed": seed_of(0, str(prompt), index),
            "num_tokens": 500, "model": "0" * 32, "label": "1",
        }
        for prompt in range(num_prompts)
        for index in range(ANSWERS_A_PROMPT)
    )  # fmt: skip
    write_shard(output, "0", rows)
    size_bytes = sum(path.stat().st_size for path in output.glob("rows-*"))
    tracemalloc.start()
    known = _Known.of(output)
    memory_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(known.answered) == num_prompts
    return {
        "read": timed(lambda: sum(_Known.of(output).finish_reasons.values())),
        "disk_bytes_an_answer": round(size_bytes / (num_prompts * ANSWERS_A_PROMPT)),
        "memory_bytes_a_prompt": round(memory_bytes / num_prompts),
    }


def scores(folder: Path) -> dict[str, Any]:
    """Answers that score's driver cuts into ranges, and what one worker scores by a rule."""
    from openrlhf.rejection.records import StoredRows
    from openrlhf.rejection.rewards.exact_reward import ExactReward
    from openrlhf.rejection.score import _judged, _ranges

    source = StoredRows(write_answers(folder / "scores.jsonl", NUM_PROMPTS))
    rewards = [ExactReward()]
    rows = [{**row, "label": "1"} for row in source]
    return {
        "cut_into_ranges": timed(lambda: sum(map(len, _ranges(source, set(), 4096)))),
        "judged_by_exact": timed(lambda: sum(1 for _ in _judged(rewards, [1.0], iter(rows), 1))),
    }


def ray_itself() -> dict[str, Any]:
    """Workers begin, and are given ranges of nothing."""
    from openrlhf.parallel.ray_workers import on_ray

    def make_work() -> Callable[[list[str]], int]:
        return len

    given = ["a prompt of two hundred and forty characters" * 5] * 500
    start, ends = time.monotonic(), []
    for _ in on_ray(make_work, (given for _ in range(NUM_RANGES))):
        ends.append(time.monotonic())
    return {
        "seconds_to_the_first_result": round(ends[0] - start, 1),
        "milliseconds_a_range": round(1e3 * (ends[-1] - ends[0]) / (NUM_RANGES - 1), 1),
    }


if __name__ == "__main__":
    sys.exit(main())
