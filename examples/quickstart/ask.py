"""Asks the held-out questions of two models, shows some answers side by side, and counts the right ones.

    python ask.py BEFORE AFTER HELD_OUT_JSONL

An answer is right when it is the expected one, word for word. The last line is `exact match: NN%` of AFTER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

NUM_SHOWN = 5
NUM_CHARACTERS_SHOWN = 70
BATCH_SIZE = 64
MAX_NEW_TOKENS = 40


def read_questions(held_out_jsonl: Path) -> tuple[list[str], list[str]]:
    """Questions and expected answers."""
    rows = [json.loads(line)["messages"] for line in held_out_jsonl.read_text(encoding="utf-8").splitlines()]
    return [row[0]["content"] for row in rows], [row[1]["content"] for row in rows]


def ask(folder: Path, questions: list[str]) -> list[str]:
    """The model's answers; greedy, many questions at once."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).to(device).eval()
    answers = []
    for first in range(0, len(questions), BATCH_SIZE):
        chats = [[{"role": "user", "content": question}] for question in questions[first : first + BATCH_SIZE]]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(device)
        tokens = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new_tokens = tokens[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]
    return answers


def percent_right(answers: list[str], expected: list[str]) -> int:
    """Rounded down: 100 means all."""
    return 100 * sum(a == e for a, e in zip(answers, expected, strict=True)) // len(expected)


def show(question: str, before: str, after: str, expected: str) -> None:
    verdict = "right" if after == expected else f"wrong: {expected}"
    print(f"\n{question}\n  before   {printable(before)}\n  after    {printable(after)}   [{verdict}]")


def printable(text: str) -> str:
    """As a terminal can show it, and not too long; an untrained model says anything."""
    shown = "".join(letter if letter.isascii() and letter.isprintable() else "·" for letter in text)
    return shown if len(shown) <= NUM_CHARACTERS_SHOWN else f"{shown[:NUM_CHARACTERS_SHOWN]} ..."


def main(before: Path, after: Path, held_out_jsonl: Path) -> None:
    disable_progress_bar()
    questions, expected = read_questions(held_out_jsonl)
    answers_before, answers_after = ask(before, questions), ask(after, questions)
    for asked in list(zip(questions, answers_before, answers_after, expected, strict=True))[:NUM_SHOWN]:
        show(*asked)
    right_before, right_after = (
        percent_right(answers_before, expected),
        percent_right(answers_after, expected),
    )
    print(f"\n{len(questions)} held-out questions; right before training: {right_before}%")
    print(f"exact match: {right_after}%")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
