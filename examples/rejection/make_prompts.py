"""Makes of the quickstart's data what the example of rejection sampling needs.

python make_prompts.py FOLDER      reads train.jsonl and held_out.jsonl there, and writes beside them

weak.jsonl              questions with answers, from which the weak model learns
prompts.jsonl           other questions without answers: {"messages": [...], "label": "sixty-five"}
held_out_prompts.jsonl  the same of numbers that stand in no training row
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NUM_ANSWERED, NUM_PROMPTS = 4500, 3000


def read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows):,} rows")


def as_prompt(row: dict) -> dict:
    """The question alone; the label is what stands behind the working: eight plus seven is fifteen, …: sixty-five."""
    question, answer = row["messages"]
    return {"messages": [question], "label": answer["content"].rpartition(": ")[2]}


def main(folder: Path) -> None:
    rows, held_out = read(folder / "train.jsonl"), read(folder / "held_out.jsonl")
    write(folder / "weak.jsonl", rows[:NUM_ANSWERED])
    write(folder / "prompts.jsonl", [as_prompt(row) for row in rows[NUM_ANSWERED : NUM_ANSWERED + NUM_PROMPTS]])
    write(folder / "held_out_prompts.jsonl", [as_prompt(row) for row in held_out])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
