"""Answers of mixed lengths: our engine in process against `model.generate` in plain batches of the same size.

    python -m benchmarks.generation [--prompts 256] [--batch 32]

A small Qwen3 with fresh weights, in which one token of 64 ends an answer: half of the answers have fewer than 44 tokens
and the longest 256. Both draw at temperature 1, twice in turn; the better time of each counts. Prints tokens a second.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from openrlhf.rejection.engines.engine import Generation, Request, Sampling
from openrlhf.rejection.engines.transformers_engine import TransformersEngine
from openrlhf.rejection.prompts import Prompt, seed_of
from tests.helpers.tokenizers import tiny_tokenizer

VOCABULARY, END_TOKENS, LONGEST = 512, list(range(2, 512, 64)), 256


def save_model(folder: Path) -> None:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        eos_token_id=END_TOKENS,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def our_seconds(folder: Path, prompts: list[str], batch: int) -> tuple[float, int]:
    """Seconds and generated tokens."""
    engine = TransformersEngine(str(folder), Sampling(1.0, 1.0, LONGEST, None), batch, param_dtype="fp32")
    asked = [Request(Prompt(str(i), text), 0, seed_of(0, str(i), 0)) for i, text in enumerate(prompts)]
    begin = time.perf_counter()
    answers = list(engine.answers(iter(asked)))
    return time.perf_counter() - begin, sum(one.num_tokens or 0 for one in answers if isinstance(one, Generation))


def plain_seconds(folder: Path, prompts: list[str], batch: int) -> tuple[float, int]:
    """The same of `model.generate`."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    num_tokens = 0
    begin = time.perf_counter()
    for start in range(0, len(prompts), batch):
        inputs = tokenizer(prompts[start : start + batch], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        found = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=LONGEST, pad_token_id=0)
        for row in found[:, inputs["input_ids"].shape[1] :].tolist():
            ends = [place for place, token in enumerate(row) if token in END_TOKENS]
            num_tokens += ends[0] + 1 if ends else len(row)
    return time.perf_counter() - begin, num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    disable_progress_bar()
    dice = random.Random(0)
    prompts = ["how much is it? " * dice.randint(1, 12) for _ in range(given.prompts)]
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name))
        rates: dict[str, list[float]] = {"plain batches": [], "ours": []}
        for _ in range(2):
            for who, run in (("plain batches", plain_seconds), ("ours", our_seconds)):
                seconds, num_tokens = run(Path(name), prompts, given.batch)
                rates[who].append(num_tokens / seconds)
    for who, found in rates.items():
        print(f"{who}: {max(found):,.0f} tokens/s of {', '.join(f'{rate:,.0f}' for rate in found)}")
    print(f"ratio: {max(rates['ours']) / max(rates['plain batches']):.2f}")


if __name__ == "__main__":
    main()
