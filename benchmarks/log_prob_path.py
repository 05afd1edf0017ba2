"""The log-prob path alone: `python -m benchmarks.log_prob_path NUM_TARGETS MODEL...` prints JSON.

From hidden states to log-probs of the targets and back, in bf16: ours, and the plain way through the logits of all
targets. Seconds and FLOP/s (6 × targets × hidden × vocabulary, counted once for both) of forward and backward together;
on a GPU also the peak of what is allocated, hidden states, weights and their gradients included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.materials import shape_of
from openrlhf.models.head.log_prob_head import target_log_probs

NUM_REPEATS = 5


def measure(model: str, num_targets: int) -> dict[str, Any]:
    shape = shape_of(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    hidden = torch.randn(num_targets, shape.hidden_size, device=device).bfloat16().requires_grad_()
    weight = (0.02 * torch.randn(shape.vocab_size, shape.hidden_size, device=device)).bfloat16().requires_grad_()
    targets = torch.randint(shape.vocab_size, (num_targets,), device=device)
    flops = 6 * num_targets * shape.head_parameters
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: target_log_probs(hidden, weight, None, targets).log_probs,
        "all_logits": lambda: (hidden @ weight.t()).float().log_softmax(-1).gather(1, targets[:, None])[:, 0],
    }
    found: dict[str, Any] = {"model": model, "num_targets": num_targets, "device": device}
    for name, way in ways.items():
        try:
            found[name] = _measure(way, flops, device, (hidden, weight))
        except torch.OutOfMemoryError:
            found[name] = {"failed": "out of memory"}
    return found


def _measure(
    way: Callable[[], torch.Tensor], flops: int, device: str, leaves: tuple[torch.Tensor, ...]
) -> dict[str, float]:
    def once() -> float:
        for leaf in leaves:
            leaf.grad = None
        start = _now(device)
        way().mean().neg().backward()
        return _now(device) - start

    once()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = sorted(once() for _ in range(NUM_REPEATS))[NUM_REPEATS // 2]
    figures = {"seconds": seconds, "flops_per_second": flops / seconds}
    if device == "cuda":
        figures["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
    return figures


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    print(json.dumps([measure(model, int(sys.argv[1])) for model in sys.argv[2:]]))
