"""Windows and soft caps in a ring take memory and time that are bounded: not all scores of a long sample at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openrlhf.models.attention import ring_kernels, ring_plan
from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.models.attention.ring_kernels import ProductKernel, SavedRows

NUM_HEADS, NUM_TOKENS, HEAD_SIZE, LARGEST_TILE, WINDOW = 2, 2048, 8, 2**14, 32


@pytest.mark.parametrize("source", [1, 0, 2], ids=["own block", "earlier rank's", "later rank's"])
@pytest.mark.parametrize("options", [dict(window=WINDOW), dict(softcap=5.0)], ids=str)
def test_scores_of_a_long_sample(monkeypatch, options, source):
    monkeypatch.setattr(ring_kernels, "LARGEST_TILE", LARGEST_TILE)
    block = _block(monkeypatch, rank=1, source=source)
    query, key, value = (torch.randn(NUM_TOKENS // 4, NUM_HEADS, HEAD_SIZE) for _ in range(3))
    query, key = query[: len(block.queries.index)], key[: len(block.keys.index)]
    value = value[: len(key)]
    asked = AttentionOptions(None, **options)
    with _Sizes() as sizes:
        output, sums = ProductKernel().forward(query, key, value, block, asked)
        ProductKernel().backward(SavedRows(output, query, key, value, output, sums), block, asked)
    assert max(sizes.of_products) <= LARGEST_TILE
    if "window" in options:
        # what is seen, each row's window, at most four times over, in the forward and three times in the backward pass
        assert sum(sizes.of_products) <= 4 * 4 * len(query) * NUM_HEADS * (WINDOW + HEAD_SIZE)


def _block(monkeypatch: pytest.MonkeyPatch, rank: int, source: int) -> ring_plan.Block:
    monkeypatch.setattr(ring_plan.dist, "get_rank", lambda group: rank)
    monkeypatch.setattr(ring_plan.dist, "get_world_size", lambda group: 4)
    borders = torch.tensor([0, NUM_TOKENS], dtype=torch.int32)
    group: Any = object()
    return ring_plan.make_ring(group, borders, 0, torch.device("cpu")).blocks[source][0]


class _Sizes(TorchDispatchMode):
    """How many numbers each product of matrices gave."""

    def __init__(self) -> None:
        super().__init__()
        self.of_products: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
            self.of_products += [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result
