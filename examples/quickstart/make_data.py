"""Writes the quickstart's data: sums and differences below a hundred, asked and answered in words.

    python make_data.py FOLDER      writes FOLDER/train.jsonl and FOLDER/held_out.jsonl

Each row is a chat: {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}. A pair of numbers that
is held out stands in no training row: neither in the other order, nor in another wording, nor with the other
operation. The answer works with ones and tens before it says the result, as a pupil would.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

SEED = 1
NUM_HELD_OUT_PAIRS = 75

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

SUM_WORDINGS = ("What is {a} plus {b}?", "Add {a} and {b}.", "How much are {a} and {b}?")
DIFFERENCE_WORDINGS = ("What is {a} minus {b}?", "Take {b} from {a}.", "How much is {a} less {b}?")


def in_words(number: int) -> str:
    """0 to 99 in words: 42 is forty-two."""
    if number < 20:
        return (ONES + TEENS)[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def tens_and_ones(number: int) -> tuple[int, int]:
    """42 is 40 and 2."""
    return number - number % 10, number % 10


def sum_answer(a: int, b: int) -> str:
    """How a + b is worked out: eight plus seven is fifteen, forty plus ten is fifty: sixty-five."""
    (a_tens, a_ones), (b_tens, b_ones) = tens_and_ones(a), tens_and_ones(b)
    return f"{_fact(a_ones, 'plus', b_ones)}, {_fact(a_tens, 'plus', b_tens)}: {in_words(a + b)}"


def difference_answer(a: int, b: int) -> str:
    """How a - b is worked out, with ten borrowed where the ones ask for it."""
    (a_tens, a_ones), (b_tens, b_ones) = tens_and_ones(a), tens_and_ones(b)
    if a_ones < b_ones:
        a_tens, a_ones = a_tens - 10, a_ones + 10
    return f"{_fact(a_ones, 'minus', b_ones)}, {_fact(a_tens, 'minus', b_tens)}: {in_words(a - b)}"


def _fact(a: int, operation: str, b: int) -> str:
    result = a + b if operation == "plus" else a - b
    return f"{in_words(a)} {operation} {in_words(b)} is {in_words(result)}"


def chats(large: int, small: int) -> Iterator[dict]:
    """Every question about a pair of numbers, with its answer."""
    yield from _worded(DIFFERENCE_WORDINGS, large, small, difference_answer(large, small))
    if large + small < 100:
        yield from _worded(SUM_WORDINGS, large, small, sum_answer(large, small))
        if large != small:
            yield from _worded(SUM_WORDINGS, small, large, sum_answer(small, large))


def _worded(wordings: tuple[str, ...], a: int, b: int, answer: str) -> Iterator[dict]:
    for wording in wordings:
        question = wording.format(a=in_words(a), b=in_words(b))
        yield {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }


def write_rows(path: Path, pairs: list[tuple[int, int]], dice: random.Random) -> None:
    rows = [row for pair in pairs for row in chats(*pair)]
    dice.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows):,} rows")


def main(folder: Path) -> None:
    dice = random.Random(SEED)
    pairs = [(large, small) for large in range(100) for small in range(large + 1)]
    dice.shuffle(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "held_out.jsonl", pairs[:NUM_HELD_OUT_PAIRS], dice)
    write_rows(folder / "train.jsonl", pairs[NUM_HELD_OUT_PAIRS:], dice)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
