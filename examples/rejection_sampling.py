"""The training stage of rejection sampling: generated answers with rewards → the best of them → fine-tuning.

    python examples/rejection_sampling.py MODEL GENERATIONS OUTPUT
    torchrun --nproc_per_node 2 examples/rejection_sampling.py MODEL GENERATIONS OUTPUT

GENERATIONS is what the sampling and scoring stages leave, a JSON object a line: {"prompt": "...", "response": "...",
"reward": 0.7}, several for each prompt. A prompt may be a list of messages; a reward of null is no verdict, and its
response is left out. Of each prompt the best response is trained on, if it is good enough.
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
        known = best.get(key_of(generation))
        if generation["reward"] is not None and (known is None or generation["reward"] > known["reward"]):
            best[key_of(generation)] = generation
    return [generation for generation in best.values() if generation["reward"] >= min_reward]


def key_of(generation: dict) -> str:
    """The prompt, text or messages, as a key."""
    return json.dumps(generation["prompt"], sort_keys=True)


def as_chat(generation: dict) -> dict:
    """A row for supervised fine-tuning."""
    prompt = generation["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"messages": [*messages, {"role": "assistant", "content": generation["response"]}]}


def main(model: str, generations_jsonl: Path, output: str) -> None:
    generations = read_generations(generations_jsonl)
    kept = best_of_each_prompt(generations, MIN_REWARD)
    num_prompts = len(set(map(key_of, generations)))
    print(f"{len(generations):,} generations for {num_prompts:,} prompts; {len(kept):,} are trained on")
    train(Dataset.from_list([as_chat(generation) for generation in kept]), run_settings(model, output))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
