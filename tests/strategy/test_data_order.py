"""Which samples make a step is decided by seed and epoch; the strategy hands no rank and no layout into it."""

from __future__ import annotations

from dataclasses import replace

import torch

from openrlhf.config import TrainConfig
from openrlhf.parallel.groups import alone
from openrlhf.strategy import DeepspeedStrategy

ROWS = [(torch.tensor([5, 6, 7]), torch.ones(3), torch.ones(3))] * 20


def steps(num_ranks: int, micro_batch_size: int, max_tokens: int | None = None, seed: int = 1) -> list[list[str]]:
    """Names of each step's samples, over all ranks, two epochs."""
    strategy = DeepspeedStrategy(train=TrainConfig(seed=seed, batch_size=8, max_tokens_per_micro_batch=max_tokens))
    of_ranks = []
    for rank in range(num_ranks):
        strategy.groups = replace(alone(), rank=rank, world_size=num_ranks, data_rank=rank, data_size=num_ranks)
        of_ranks.append(strategy.setup_dataloader(ROWS, micro_batch_size).windows(max_epochs=2))
    return [sorted(name for window in step for name in window.unit_names) for step in zip(*of_ranks, strict=True)]


def test_steps_hold_the_same_samples_on_any_ranks_in_any_layout():
    whole = steps(num_ranks=1, micro_batch_size=8)
    assert steps(num_ranks=2, micro_batch_size=1) == whole
    assert steps(num_ranks=4, micro_batch_size=2) == whole
    assert steps(num_ranks=2, micro_batch_size=1, max_tokens=12) == whole


def test_another_seed_is_another_order():
    assert steps(1, 8, seed=2) != steps(1, 8, seed=1)
