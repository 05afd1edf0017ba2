"""The training stage of rejection sampling: generated answers with rewards → the best of them → fine-tuning.

    python examples/rejection_sampling.py MODEL GENERATIONS OUTPUT
    torchrun --nproc_per_node 2 examples/rejection_sampling.py MODEL GENERATIONS OUTPUT

GENERATIONS is what the sampling and scoring stages leave, a JSON object a line: {"prompt": "...", "response": "...",
"reward": 0.7}, several for each prompt. Of each prompt the best response is trained on, if it is good enough.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset
from python_use import run_settings, train

MIN_REWARD = 0.5


def read_generations(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def best_of_each_prompt(generations: Iterable[dict], min_reward: float) -> list[dict]:
    """The generation with the highest reward of each prompt, the first of equals; none below `min_reward`."""
    best: dict[str, dict] = {}
    for generation in generations:
        known = best.get(generation["prompt"])
        if known is None or generation["reward"] > known["reward"]:
            best[generation["prompt"]] = generation
    return [generation for generation in best.values() if generation["reward"] >= min_reward]


def as_chat(generation: dict) -> dict:
    """A row for supervised fine-tuning."""
    return {
        "messages": [
            {"role": "user", "content": generation["prompt"]},
            {"role": "assistant", "content": generation["response"]},
        ]
    }


def main(model: str, generations_jsonl: Path, output: str) -> None:
    generations = read_generations(generations_jsonl)
    kept = best_of_each_prompt(generations, MIN_REWARD)
    num_prompts = len({generation["prompt"] for generation in generations})
    print(f"{len(generations):,} generations for {num_prompts:,} prompts; {len(kept):,} are trained on")
    train(Dataset.from_list([as_chat(generation) for generation in kept]), run_settings(model, output))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
