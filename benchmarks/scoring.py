"""Rewards of answers of mixed lengths: our scorer against transformers' pipeline on padded batches.

    python -m benchmarks.scoring [--texts 192] [--batch 16] [--rounds 5]

A small Qwen3 reward model with fresh weights in bf16, whose head both read at the end token; texts of log-normal
lengths, up to some 1,400 tokens, in no order. The pipeline computes them as they come, and once more sorted by length,
which is the most that it can be helped. Each in turn; medians of tokens a second, padding not counted. Writes
benchmarks/results/scoring.json. First the rewards must agree, in float32, to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForSequenceClassification, Qwen3Config, Qwen3ForSequenceClassification, pipeline
from transformers.utils.logging import disable_progress_bar

from benchmarks import machine
from benchmarks.measures import write_json
from openrlhf.rejection.reward_scorer import RewardScorer
from tests.helpers.tokenizers import EOS, tiny_tokenizer

RESULT = Path(__file__).parent / "results" / "scoring.json"
TOLERANCE = 1e-4
Rewards = Callable[[list[str]], list[float]]


def save_model(folder: Path) -> None:
    """Case (a)'s layers, with a head of one value."""
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=384,
        intermediate_size=1_024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4_096,
        num_labels=1,
        pad_token_id=tiny_tokenizer().pad_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def make_texts(number: int) -> list[str]:
    dice = random.Random(0)
    lengths = [min(max(int(dice.lognormvariate(5.0, 1.2)), 16), 1_024) for _ in range(number)]
    words = ("coffee", "oat", "milk", "please", "how", "much", "is", "it", "when", "ready", "at", "the", "bar")
    return [" ".join(dice.choices(words, k=max(length // 3, 1))) for length in lengths]


def ours(folder: Path, dtype: str) -> Rewards:
    scorer = RewardScorer(str(folder), param_dtype=dtype, max_tokens=8_192)
    return lambda texts: [reward if reward is not None else float("nan") for reward in scorer.scores(texts)]


def of_pipeline(folder: Path, dtype: torch.dtype, batch: int) -> Rewards:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    classify = pipeline("text-classification", model, tokenizer=tiny_tokenizer(), batch_size=batch)

    def rewards(texts: list[str]) -> list[float]:
        return [one["score"] for one in classify([f"{text}{EOS}" for text in texts], function_to_apply="none")]

    return rewards


def sorted_first(rewards: Rewards) -> Rewards:
    return lambda texts: rewards(sorted(texts, key=len))


def check_same_rewards(folder: Path, texts: list[str], batch: int) -> float:
    """The largest difference. Raises SystemExit where they are not the same."""
    found, expected = ours(folder, "fp32")(texts), of_pipeline(folder, torch.float32, batch)(texts)
    worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    if not worst < TOLERANCE:
        raise SystemExit(f"the rewards differ by {worst:.1e}: what is timed is not the same thing")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    disable_progress_bar()
    texts = make_texts(given.texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder)
        difference = check_same_rewards(folder, texts[:32], given.batch)
        padded = of_pipeline(folder, torch.bfloat16, given.batch)
        ways = {"ours": ours(folder, "bf16"), "pipeline": padded, "pipeline, sorted": sorted_first(padded)}
    num_tokens = sum(len(ids) + 1 for ids in tiny_tokenizer()(texts)["input_ids"])
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        way(texts[: given.batch])  # warm-up
    for _ in range(given.rounds):
        for way, rewards in ways.items():
            begin = time.perf_counter()
            rewards(texts)
            rates[way].append(num_tokens / (time.perf_counter() - begin))
    medians = {way: median(found) for way, found in rates.items()}
    ratios = {way: medians["ours"] / found for way, found in medians.items() if way != "ours"}
    result = {"machine": machine.hardware(), "commit": machine.commit(), "num_threads": torch.get_num_threads()}
    result |= {"num_texts": len(texts), "num_tokens": num_tokens, "batch": given.batch, "tokens_per_second": rates}
    result |= {"medians": medians, "ours_is_faster_by": ratios, "largest_difference_of_rewards": difference}
    write_json(RESULT, result)
    print(json.dumps({"medians": medians, "ours_is_faster_by": ratios, "difference": difference}, indent=1))


if __name__ == "__main__":
    main()
