"""DeepSpeed averages gradients over ranks; the parts of a window on the ranks must add up instead. One real step."""

from __future__ import annotations

import math

import pytest


def first_step(micro_batch_size: int, zero_stage: int) -> tuple[float, float]:
    """Loss and gradient norm of one step over rows of unlike lengths, on this pool's ranks."""
    import torch

    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.models import Actor
    from openrlhf.objectives import SFTObjective
    from openrlhf.strategy import DeepspeedStrategy
    from openrlhf.trainer.step import WindowStep
    from tests.helpers.tiny_models import tiny_model
    from tests.trainer.plain_engine import make_rows

    rows = make_rows((9, 3, 14, 5))
    strategy = DeepspeedStrategy(zero_stage=zero_stage, param_dtype="fp32", train_batch_size=len(rows))
    strategy.setup_distributed()
    actor = Actor(tiny_model("llama", torch.float32))
    optimizer = strategy.create_optimizer(actor)
    strategy.prepare((actor, optimizer, build_schedule(optimizer, "constant")))
    (window,) = strategy.setup_dataloader(rows, micro_batch_size, shuffle=False).windows(max_epochs=1)
    result = WindowStep(actor, actor.trained, strategy, SFTObjective()).run(window, 0)
    actor.engine.destroy()
    return result.loss, result.outcome.grad_norm


def expected_step() -> tuple[float, float]:
    from tests.trainer.plain_engine import make_rows
    from tests.trainer.test_step import plain_loop

    loss, gradients = plain_loop(make_rows((9, 3, 14, 5)), "token")
    return loss, math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))


@pytest.mark.parametrize(("micro_batch_size", "zero_stage"), [(1, 2), (2, 0)])
def test_two_ranks_compute_the_step_of_a_plain_loop(two_ranks, micro_batch_size, zero_stage):
    for found in two_ranks.run(first_step, micro_batch_size, zero_stage):
        assert found == pytest.approx(expected_step(), rel=1e-5)
