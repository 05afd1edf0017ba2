"""What each rank of a ring computes and holds: `python -m benchmarks.ring_balance DATA` (from the project's root).

Work is counted exactly, from the shares and the borders of the samples: multiply-adds of attention a layer, forward. In
each of the ring's steps the ranks wait for the slowest, so its work counts for the time. Activation memory is what a
forward pass keeps for the backward pass, in bytes, measured on real ranks. None of it depends on how busy the machine
is. DATA is a file of rows {"question", "answer"}. Writes benchmarks/results/ring_balance.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from openrlhf.parallel.sequence_shares import Span, sample_share

RESULTS = Path(__file__).parent / "results" / "ring_balance.json"
NUM_TOKENS = 16_384
RING_SIZES = (1, 2, 4)
MODEL = dict(kind="qwen3", hidden_size=128, intermediate_size=384, num_hidden_layers=4, max_position_embeddings=16_384)
MULTIPLY_ADDS_A_PAIR = 2 * 4 * 16  # query · key and weight · value, 4 heads of size 16

Share = Callable[[int, int, int], tuple[Span, ...]]  # (length of a sample, rank, ring size) → spans of its tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a file of rows with question and answer, as GSM8K's train.jsonl")
    path = parser.parse_args().data
    samples = first_samples(path, NUM_TOKENS)
    packs = {"gsm8k": [len(ids) for ids, _ in samples], "one_sample": [NUM_TOKENS]}
    results = {
        "num_tokens": NUM_TOKENS,
        "num_samples": len(samples),
        "attention_multiply_adds_a_layer": {name: work_of_pack(lengths) for name, lengths in packs.items()},
        "model": MODEL,
        "activation_bytes_by_rank": memory_of_rings(samples),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def first_samples(path: Path, num_tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(token ids, loss mask) of the first rows, the last one cut, `num_tokens` in all."""
    from tests.helpers.tokenizers import tiny_tokenizer

    tokenizer, samples, left = tiny_tokenizer(), [], num_tokens
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            question = tokenizer(row["question"] + "\n")["input_ids"]
            ids = torch.tensor(question + tokenizer(row["answer"])["input_ids"])[:left]
            mask = (torch.arange(len(ids)) >= len(question) - 1).long()
            samples.append((ids, mask))
            left -= len(ids)
            if left == 0:
                return samples
    raise SystemExit(f"{path} holds {num_tokens - left:,} tokens, fewer than {num_tokens:,}.")


# --- work


def contiguous_share(length: int, rank: int, size: int) -> tuple[Span, ...]:
    """The plain way: each sample cut into as many parts as there are ranks."""
    return ((rank * length // size, (rank + 1) * length // size),)


def work_of_pack(lengths: list[int]) -> dict[str, Any]:
    ways: dict[str, Share] = {"zigzag": sample_share, "contiguous": contiguous_share}
    return {
        f"ring_{size}": {way: _work(lengths, share, size) for way, share in ways.items()} for size in RING_SIZES[1:]
    }


def _work(lengths: list[int], share: Share, size: int) -> dict[str, Any]:
    """Multiply-adds by rank, and those that the ring's time is made of: of the slowest rank in each step."""
    pairs = [[0] * size for _ in range(size)]  # by rank, by step
    for rank in range(size):
        for step in range(size):
            source = (rank - step) % size
            pairs[rank][step] = sum(_pairs(share(n, rank, size), share(n, source, size)) for n in lengths)
    by_rank = [MULTIPLY_ADDS_A_PAIR * sum(steps) for steps in pairs]
    waited_for = MULTIPLY_ADDS_A_PAIR * sum(max(steps) for steps in zip(*pairs, strict=True))
    return {
        "by_rank": by_rank,
        "slowest_over_mean": round(max(by_rank) * size / sum(by_rank), 4),
        "time_over_even_time": round(waited_for * size / sum(by_rank), 4),
    }


def _pairs(queries: tuple[Span, ...], keys: tuple[Span, ...]) -> int:
    """Query-key pairs where the key does not stand behind the query."""
    total = 0
    for first_query, last_query in queries:
        positions = torch.arange(first_query, last_query)
        for first_key, last_key in keys:
            total += int((positions + 1 - first_key).clamp(0, last_key - first_key).sum())
    return total


# --- memory


def memory_of_rings(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, list[int]]:
    from tests.helpers.ranks import RankPool

    found = {}
    for size in RING_SIZES:
        with RankPool(size) as ranks:
            found[f"ring_{size}"] = ranks.run(activation_bytes, samples)
    return found


def activation_bytes(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """Bytes that this rank's forward pass keeps for its backward pass, the weights not counted; runs in a rank."""
    import torch.distributed as dist

    from openrlhf.batching import TokenSequence, Unit, make_micro_batch
    from openrlhf.models import Actor
    from tests.helpers.tiny_models import tiny_model

    rank, size = dist.get_rank(), dist.get_world_size()
    actor = Actor(tiny_model(**MODEL), packing_samples=True, ring_attn_size=size)
    rows = [Unit((TokenSequence(ids, mask),), "") for ids, mask in samples]
    micro_batch = make_micro_batch(rows, packed=True).share(rank, size)
    weights = {parameter.untyped_storage().data_ptr() for parameter in actor.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = actor.score_targets(
            input_ids=micro_batch.input_ids,
            position_ids=micro_batch.position_ids,
            cu_seqlens=micro_batch.cu_seqlens,
            max_seqlen=micro_batch.max_seqlen,
            target_index=micro_batch.target_index,
            target_ids=micro_batch.target_ids,
            sequence_group=dist.group.WORLD if size > 1 else None,
        )
    scores.log_probs.sum().backward()
    return sum(num_bytes for num_bytes, _ in kept.values())


if __name__ == "__main__":
    main()
