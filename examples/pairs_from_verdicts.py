"""Answers with verdicts → pairs for train_rm and train_dpo: each good answer beside each bad one to the same context.

    python examples/pairs_from_verdicts.py VERDICTS OUTPUT
    python -m openrlhf.cli.inspect_data --model.model_name_or_path MODEL --data.dataset OUTPUT/train.jsonl

VERDICTS holds a JSON object a line: {"context": "...", "generation": "...", "reward": 1}, an answer being good if its
reward is above 0.5. Contexts of which all answers are good, or all bad, give no pair. The pairs of a context weigh 1
together, so that a context with many answers counts no more than others. OUTPUT/test.jsonl holds the pairs of every
tenth context with both, OUTPUT/train.jsonl the others'.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

GOOD_ABOVE = 0.5
TEST_EVERY = 10


def pairs_of_contexts(verdicts: Iterable[dict]) -> Iterator[list[dict]]:
    """The pairs of each context that has a good answer and a bad one, in the order of the contexts."""
    answers: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # good ones and bad ones, each once, in order
    for one in verdicts:
        good, bad = answers.setdefault(one["context"], ({}, {}))
        (good if one["reward"] > GOOD_ABOVE else bad)[one["generation"]] = None
    for context, (good, bad) in answers.items():
        judged_both_ways = good.keys() & bad.keys()
        pairs = list(itertools.product(*([one for one in side if one not in judged_both_ways] for side in (good, bad))))
        if pairs:
            row = {"prompt": f"{context}\n", "weight": 1 / len(pairs)}
            yield [{**row, "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]


def main(verdicts: Path, output: Path) -> None:
    with verdicts.open(encoding="utf-8") as file:
        contexts = list(pairs_of_contexts(map(json.loads, file)))
    if not contexts:
        sys.exit(f"{verdicts}: no context has both a good answer and a bad one, so there is no pair.")
    output.mkdir(parents=True, exist_ok=True)
    test = contexts[::TEST_EVERY]
    train = [pairs for number, pairs in enumerate(contexts) if number % TEST_EVERY]
    for name, part in (("train", train), ("test", test)):
        lines = [json.dumps(pair) + "\n" for pairs in part for pair in pairs]
        (output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(lines)} pairs of {len(part)} contexts")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
