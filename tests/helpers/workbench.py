"""A folder with everything that a run of the command line needs: a tiny model with its tokenizer, and rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import CHATML, tiny_tokenizer


def save_model(folder: Path, kind: str = "qwen3", dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A tiny model and a tokenizer that fits it."""
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    tiny_model(kind, dtype=dtype, vocab_size=len(tokenizer), **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_rows(path: Path, num_rows: int, seed: int = 0) -> Path:
    """Rows `question`, `answer` of very unlike lengths."""
    rng = random.Random(seed)
    words = [
        "sum",
        "of",
        "three",
        "and",
        "four",
        "is",
        "seven",
        "coffee",
        "with",
        "oat milk",
        "order",
        "ready",
        "clips",
    ]

    def text(longest: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, longest)))

    rows = [{"question": text(12), "answer": text(20)} for _ in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_pairs(path: Path, num_rows: int, seed: int = 0) -> Path:
    """Rows `prompt`, `chosen`, `rejected`, `margin` and `kind`, a word of two."""
    questions = save_rows(path, 2 * num_rows, seed).read_text().splitlines()
    rows = [json.loads(line) for line in questions]
    pairs = [
        {
            "prompt": f"{row['question']} ",
            "chosen": f"{row['answer']} sum",
            "rejected": f"{other['answer']} four",
            "margin": number / num_rows,
            "kind": ("short", "long")[number % 2],
        }
        for number, (row, other) in enumerate(zip(rows[::2], rows[1::2], strict=True))
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def pair_flags(model: Path, pairs: Path, out: Path, **changes: Any) -> list[str]:
    """`flags` for train_dpo and train_rm."""
    return flags(model, pairs, out, **{"data__input_key": None, "data__output_key": None} | changes)


def flags(model: Path, rows: Path, out: Path, **changes: Any) -> list[str]:
    """The words of a command line: fp32, 4 samples a step; `changes` have `__` for `.`, and None for left out."""
    values = {
        "model.model_name_or_path": model,
        "data.dataset": rows,
        "data.input_key": "question",
        "data.output_key": "answer",
        "data.max_len": 128,
        "data.cache_dir": rows.parent / "cache",
        "data.num_processors": 1,
        "ds.param_dtype": "fp32",
        "train.batch_size": 4,
        "train.micro_batch_size": 2,
        "train.max_epochs": 1,
        "adam.lr": 1e-3,
        "ckpt.output_dir": out,
        "ckpt.path": out / "checkpoints",
    }
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def step_lines(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(out) if "loss" in line]


def eval_lines(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(out) if "eval_loss" in line]
