"""Makes pairs of a right and a wrong answer to the quickstart's questions.

    python make_pairs.py MODEL      reads train.jsonl and held_out.jsonl, writes pairs.jsonl and held_out_pairs.jsonl

The right answer is the row's. The wrong one is what MODEL answers, where that is wrong (kind `mistake`); where it is
right, the right one with a slip: one of its numbers is another (kind `slip`).
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "quickstart"))

from ask import ask, read_questions  # the quickstart's
from make_data import in_words
from transformers.utils.logging import disable_progress_bar

SEED = 1
NUM_QUESTIONS = 8000  # of the training rows


def with_a_slip(answer: str, dice: random.Random) -> str:
    """The answer with another number in the place of one of its numbers that are results."""
    places = [match.span(1) for match in re.finditer(r"(?:is|:) ([a-z-]+)", answer)]
    start, end = dice.choice(places)
    others = [in_words(number) for number in range(100) if in_words(number) != answer[start:end]]
    return answer[:start] + dice.choice(others) + answer[end:]


def make_pairs(model: Path, rows: Path, most: int | None, dice: random.Random) -> list[dict[str, str]]:
    """One of each question of the first `most` rows."""
    questions, right_answers = (part[:most] for part in read_questions(rows))
    pairs = []
    for question, right, said in zip(questions, right_answers, ask(model, questions), strict=True):
        is_mistake = bool(said) and said != right
        wrong = said if is_mistake else with_a_slip(right, dice)
        kind = "mistake" if is_mistake else "slip"
        pairs.append({"prompt": question, "chosen": right, "rejected": wrong, "kind": kind})
    return pairs


def main(model: Path) -> None:
    disable_progress_bar()
    dice = random.Random(SEED)
    for source, target, most in (("train", "pairs", NUM_QUESTIONS), ("held_out", "held_out_pairs", None)):
        pairs = make_pairs(model, Path(f"{source}.jsonl"), most, dice)
        Path(f"{target}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(pair["kind"] for pair in pairs).items())
        print(f"{target}.jsonl: {len(pairs):,} pairs ({kinds})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
