"""Compiled layers without a compiler, and what the ranks run for tests/cuda/test_compiled_layers.py."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.distributed as dist

from openrlhf.engine.torch_operators import num_compiled_graphs
from openrlhf.models import Actor, layers
from tests.helpers.tiny_models import tiny_model
from tests.models import ring_cases
from tests.models.batches import make_samples


@contextmanager
def traced_only() -> Iterator[None]:
    """Graphs are made as always, and then run by torch: kernels of them would take minutes to compile."""
    torch.compiler.reset()
    layers._compiled_class.cache_clear()
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend="aot_eager")):
        yield
    layers._compiled_class.cache_clear()
    torch.compiler.reset()


def graphs_in_a_ring(kind: str, all_lengths: tuple[tuple[int, ...], ...]) -> tuple[list[int], float]:
    """How many graphs each pack made on this rank, and the largest error of its log-probs."""
    made, errors = [], []
    options = dict(packing_samples=True, ring_attn_size=dist.get_world_size())
    plain, compiled = (Actor(tiny_model(kind), **options).train() for _ in range(2))
    with traced_only():
        compiled.compile_layers()
        for actor in (plain, compiled):
            actor.gradient_checkpointing_enable()
        for lengths in all_lengths:
            inputs, _ = ring_cases.share_inputs(make_samples(lengths).packed())
            num_graphs = num_compiled_graphs()
            found, expected = (
                actor.score_targets(**inputs, sequence_group=dist.group.WORLD).log_probs for actor in (compiled, plain)
            )
            found.sum().backward()
            expected.sum().backward()
            errors.append((found - expected).abs().max().item() if len(found) else 0.0)
            made.append(num_compiled_graphs() - num_graphs)
    return made, max(errors)
