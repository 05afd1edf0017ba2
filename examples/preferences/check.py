"""Holds the example's figures against what they should be; exits with 1 where they are missed.

python check.py WEAK PREFERRED REWARD HELD_OUT_JSONL
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "quickstart"))

from ask import ask, percent_right, read_questions  # the quickstart's
from transformers.utils.logging import disable_progress_bar

LEAST_PERCENT_OF_REWARDS = 90
LEAST_POINTS_GAINED = 15


def percent_of_rewards(folder: Path) -> float:
    """The held-out accuracy of a reward model, at the end of its training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return 100 * [line["eval_accuracy"] for line in lines if "eval_accuracy" in line][-1]


def main(weak: Path, preferred: Path, reward: Path, held_out_jsonl: Path) -> int:
    disable_progress_bar()
    questions, expected = read_questions(held_out_jsonl)
    before, after = (percent_right(ask(folder, questions), expected) for folder in (weak, preferred))
    accuracy = percent_of_rewards(reward)
    print(f"reward model: the right answer gets the higher reward in {accuracy:.1f}% of the held-out pairs")
    print(f"exact match on held-out questions: {before}% before DPO, {after}% after it")
    missed = []
    if accuracy < LEAST_PERCENT_OF_REWARDS:
        missed.append(f"the reward model's accuracy is below {LEAST_PERCENT_OF_REWARDS}%")
    if after - before < LEAST_POINTS_GAINED:
        missed.append(f"DPO gains less than {LEAST_POINTS_GAINED} points")
    print("\n".join(f"missed: {sentence}" for sentence in missed) or "all as it should be")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
