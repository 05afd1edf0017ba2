"""Answers of mixed lengths: our engine in process against `model.generate` in plain batches of the same size.

    python -m benchmarks.generation [--prompts 128] [--batch 32] [--rounds 5]

A small Qwen3 with fresh weights, in which one token of 64 ends an answer: half of the answers have fewer than 44 tokens
and the longest 256. Both draw at temperature 1, in turn; medians of generated tokens a second. Writes
benchmarks/results/generation.json.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks import machine
from benchmarks.measures import write_json
from openrlhf.rejection.engines.engine import Generation, Request, Sampling
from openrlhf.rejection.engines.transformers_engine import TransformersEngine
from openrlhf.rejection.prompts import Prompt, seed_of
from tests.helpers.tokenizers import tiny_tokenizer

RESULT = Path(__file__).parent / "results" / "generation.json"
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    disable_progress_bar()
    dice = random.Random(0)
    prompts = ["how much is it? " * dice.randint(1, 12) for _ in range(given.prompts)]
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name))
        rates: dict[str, list[float]] = {"plain batches": [], "ours": []}
        for _ in range(given.rounds):
            for who, run in (("plain batches", plain_seconds), ("ours", our_seconds)):
                seconds, num_tokens = run(Path(name), prompts, given.batch)
                rates[who].append(num_tokens / seconds)
    medians = {who: median(found) for who, found in rates.items()}
    ratio = medians["ours"] / medians["plain batches"]
    result = {"machine": machine.hardware(), "commit": machine.commit(), "num_threads": torch.get_num_threads()}
    result |= {"num_prompts": given.prompts, "batch": given.batch, "tokens_per_second": rates, "medians": medians}
    write_json(RESULT, result | {"ours_is_faster_by": ratio})
    print(json.dumps({"medians": medians, "ours_is_faster_by": ratio}, indent=1))


if __name__ == "__main__":
    main()
