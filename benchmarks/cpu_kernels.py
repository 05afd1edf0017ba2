"""Our kernels for the CPU against what stands in for them: `python -m benchmarks.cpu_kernels [--threads 1]`.

Attention of packs in bf16, forward and backward apart, and the head's log-probs with their gradients. Milliseconds, the
median of several repeats; written to benchmarks/results/cpu_kernels.json and printed.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import machine
from benchmarks.measures import write_json
from openrlhf.models.attention.causal_pack import attend_pack
from openrlhf.models.cpu_kernels import attention, log_probs
from openrlhf.models.target_log_probs import weighted_log_probs

RESULT = Path(__file__).parent / "results/cpu_kernels.json"
NUM_REPEATS = 15
PACKS = {
    "28 samples of about 146 tokens": [min(400, max(60, int(random.Random(i).gauss(146, 45)))) for i in range(28)],
    "2 samples of 1,024 tokens": [1_024] * 2,
    "1 sample of 4,096 tokens": [4_096],
}
NUM_HEADS, NUM_KEY_HEADS, HEAD_SIZE = 6, 2, 64  # of case (a)'s model
NUM_TARGETS, HIDDEN_SIZE, VOCAB_SIZE = 2_692, 384, 16_384  # of one of its steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    found: dict[str, Any] = {"machine": machine.hardware(), "num_threads": torch.get_num_threads()}
    for way, module in {"ours": None, "torch": attention}.items():
        for name, lengths in PACKS.items():
            found.setdefault("attention", {}).setdefault(name, {})[way] = _without(module, partial(_attention, lengths))
    for way, module in {"ours": None, "torch": log_probs}.items():
        found.setdefault("head", {})[way] = {"milliseconds": _without(module, lambda: _milliseconds(_head()))}
    write_json(RESULT, found)
    print(RESULT.read_text())


def _without(module: Any, measure: Callable[[], Any]) -> Any:
    """What `measure` finds where `module` has no kernel."""
    if module is None:
        return measure()
    with patch.object(module, "_library", lambda: None):
        return measure()


def _attention(lengths: list[int]) -> dict[str, float]:
    shape = (sum(lengths), HEAD_SIZE)
    query, key, value = (
        torch.randn(heads, *shape).bfloat16().requires_grad_() for heads in (NUM_HEADS, NUM_KEY_HEADS, NUM_KEY_HEADS)
    )
    grad = torch.randn(sum(lengths), NUM_HEADS, HEAD_SIZE).bfloat16()
    output = attend_pack(query, key, value, lengths, None)
    return {
        "forward_milliseconds": _milliseconds(lambda: attend_pack(query, key, value, lengths, None)),
        "backward_milliseconds": _milliseconds(lambda: torch.autograd.grad(output, (query, key, value), grad, True)),
    }


def _head() -> Callable[[], Any]:
    hidden = torch.randn(NUM_TARGETS, HIDDEN_SIZE).bfloat16().requires_grad_()
    weight = (0.05 * torch.randn(VOCAB_SIZE, HIDDEN_SIZE)).bfloat16().requires_grad_()
    target_ids, weights = torch.randint(0, VOCAB_SIZE, (NUM_TARGETS,)), torch.full((NUM_TARGETS,), 1 / NUM_TARGETS)
    return lambda: torch.autograd.grad(
        weighted_log_probs(hidden, weight, None, target_ids, weights)[1], (hidden, weight)
    )


def _milliseconds(work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(NUM_REPEATS):
        began = time.perf_counter()
        work()
        times.append(1_000 * (time.perf_counter() - began))
    return round(median(times), 1)


if __name__ == "__main__":
    main()
