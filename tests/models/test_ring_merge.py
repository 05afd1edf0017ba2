"""Blocks of a ring are merged exactly whatever the size of their scores: sums of exponentials alone would overflow."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models.attention.ring import _merge
from openrlhf.models.attention.ring_plan import Block, Rows

NUM_ROWS, NUM_HEADS, HEAD_SIZE, NUM_KEYS = 5, 2, 4, 6


@pytest.mark.parametrize("offset", [0.0, 200.0, -200.0], ids=lambda offset: f"scores about {offset:g}")
def test_merged_blocks_are_the_attention_over_all_keys(offset):
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(NUM_ROWS, NUM_HEADS, NUM_KEYS, generator=draw) + offset
    values = torch.randn(NUM_KEYS, HEAD_SIZE, generator=draw)
    output = torch.zeros(NUM_ROWS, NUM_HEADS, HEAD_SIZE)
    log_sum_exp = torch.full((NUM_ROWS, NUM_HEADS), -torch.inf)
    places, borders = torch.arange(NUM_ROWS), torch.tensor([0, NUM_ROWS], dtype=torch.int32)
    rows = Rows(places, places, borders, (((0, NUM_ROWS),),))
    for keys in (slice(0, 1), slice(1, 4), slice(4, NUM_KEYS)):
        part = scores[..., keys]
        _merge(output, log_sum_exp, Block(rows, rows, False), part.softmax(-1) @ values[keys], part.logsumexp(-1))
    torch.testing.assert_close(output, scores.softmax(-1) @ values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_sum_exp, scores.logsumexp(-1))
