"""Our kernels for the CPU against what stands in for them: `python -m benchmarks.cpu_kernels [--precision fp32]`.

Attention of packs, forward and backward apart, and the head's log-probs with their gradients. Milliseconds, the median
of several repeats; written to benchmarks/results/cpu_kernels_<precision>.json and printed. `--threads N`: 1 without it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import machine
from benchmarks.materials import shape_of
from benchmarks.measures import write_json
from openrlhf.engine.patches.float32_products import multiply_in_float32
from openrlhf.models.attention.causal_pack import attend_pack
from openrlhf.models.attention.per_sample import CausalMask
from openrlhf.models.attention.ring import ring_attention
from openrlhf.models.attention.ring_plan import make_ring
from openrlhf.models.cpu_kernels import attention, log_probs
from openrlhf.models.head.log_prob_head import weighted_log_probs

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NUM_REPEATS = 15
PACKS: dict[str, list] = {  # lengths, and whose prompts are shared
    "28 samples of about 146 tokens": [[min(400, max(60, int(random.Random(i).gauss(146, 45)))) for i in range(28)]],
    "2 samples of 1,024 tokens": [[1_024] * 2],
    "1 sample of 4,096 tokens": [[4_096]],
    "2 pairs of 100 tokens behind shared prompts of 1,000": [[1_000, 100, 100] * 2, [None, 0, 0, None, 3, 3]],
}
SHAPE = shape_of("small")  # case (a)'s
NUM_TARGETS = 2_692  # of one of its steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    choices = parser.parse_args()
    dtype = DTYPES[choices.precision]
    torch.set_num_threads(choices.threads)
    torch.manual_seed(0)
    multiply_in_float32()  # as a run does where the processor has no products of bfloat16
    found = {
        "machine": machine.hardware(),
        "commit": machine.commit(),
        "num_threads": torch.get_num_threads(),
        "attention": {name: both_ways(attention, partial(attention_times, dtype, *of)) for name, of in PACKS.items()},
        "head": both_ways(log_probs, partial(head_times, dtype)),
    }
    result = RESULTS / f"cpu_kernels_{choices.precision}.json"
    write_json(result, found)
    print(result.read_text())


def both_ways(module: Any, measure: Callable[[], Any]) -> dict[str, Any]:
    """What `measure` finds with the kernel of `module` and without it."""
    return {"ours": measure(), "torch": without_kernel(module, measure)}


def without_kernel(module: Any, measure: Callable[[], Any]) -> Any:
    with patch.object(module, "_kernels", lambda dtype: None):
        return measure()


def attention_times(
    dtype: torch.dtype, lengths: list[int], prompt_of: list[int | None] | None = None
) -> dict[str, float]:
    """Args: prompt_of: for each sample the one that it goes on from; without our kernel, blocks are merged then."""
    query, key, value = (
        torch.randn(num_heads, sum(lengths), SHAPE.head_dim).to(dtype).requires_grad_()
        for num_heads in (SHAPE.num_attention_heads, SHAPE.num_key_value_heads, SHAPE.num_key_value_heads)
    )
    grad = torch.randn(sum(lengths), SHAPE.num_attention_heads, SHAPE.head_dim).to(dtype)

    def attend() -> torch.Tensor:
        if prompt_of is None:
            return attend_pack(query, key, value, lengths, None)
        borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        ring = make_ring(None, borders, 0, torch.device("cpu"), prompt_of)
        mask = CausalMask(None, has_several_samples=True)
        return ring_attention(torch.nn.Module(), query[None], key[None], value[None], mask, ring=ring)[0][0]

    output = attend()
    return {
        "forward_milliseconds": _milliseconds(attend),
        "backward_milliseconds": _milliseconds(lambda: torch.autograd.grad(output, (query, key, value), grad, True)),
    }


def head_times(dtype: torch.dtype) -> dict[str, float]:
    hidden = torch.randn(NUM_TARGETS, SHAPE.hidden_size).to(dtype).requires_grad_()
    weight = (0.05 * torch.randn(SHAPE.vocab_size, SHAPE.hidden_size)).to(dtype).requires_grad_()
    target_ids, weights = torch.randint(SHAPE.vocab_size, (NUM_TARGETS,)), torch.full((NUM_TARGETS,), 1 / NUM_TARGETS)

    def forward_and_backward() -> object:
        scores = weighted_log_probs(hidden, weight, None, target_ids, weights)
        return torch.autograd.grad(scores.weighted_sum, (hidden, weight))

    return {"milliseconds": _milliseconds(forward_and_backward)}


def _milliseconds(work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(NUM_REPEATS):
        began = time.perf_counter()
        work()
        times.append(1_000 * (time.perf_counter() - began))
    return float(f"{median(times):.3g}")


if __name__ == "__main__":
    main()
