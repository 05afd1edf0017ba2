"""DeepSpeed's Adam on the CPU: an optimizer made anew from a state goes on as the old one would, to the bit."""

from __future__ import annotations

import copy

import pytest
import torch

from openrlhf.config import AdamConfig
from openrlhf.engine.optimizers import build_adamw

NUM_STEPS = 40


def difference_after_a_resume(offload: bool) -> float:
    """The largest difference of a weight between an unbroken run and one that was resumed after 11 steps."""
    torch.manual_seed(0)
    module = torch.nn.Linear(40, 10)
    optimizer = build_adamw(module, AdamConfig(lr=1e-2), offload)
    for step in range(NUM_STEPS):
        if step == 11:
            other_module = copy.deepcopy(module)
            state = copy.deepcopy(optimizer.state_dict())
        update(module, optimizer, step)
    other = build_adamw(other_module, AdamConfig(lr=1e-2), offload)
    other.load_state_dict(state)
    for step in range(11, NUM_STEPS):
        update(other_module, other, step)
    return float((module.weight - other_module.weight).detach().abs().max())


@pytest.mark.parametrize("offload", [False, True], ids=["FusedAdam", "DeepSpeedCPUAdam"])
def test_a_resumed_optimizer_updates_as_the_old_one(offload):
    assert difference_after_a_resume(offload) == 0


def update(module: torch.nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
    rows = torch.randn(8, 40, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    module(rows).square().sum().backward()
    optimizer.step()
