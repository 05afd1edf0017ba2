"""The guard over non-finite steps, where fp16 overflows for ever."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any


def overflows_before_the_end() -> int:
    """How many overflows a run takes, from a loss scale of 4 on, with two non-finite steps in a row allowed."""
    import deepspeed
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from openrlhf.engine.engine_state import never_raise_at_least_loss_scale
    from openrlhf.engine.step_guard import NOT_FINITE, StepOutcome
    from openrlhf.trainer.callbacks.nonfinite_guard import NonFiniteGuard, NonFiniteSteps
    from openrlhf.trainer.step import StepResult

    deepspeed.init_distributed("gloo")
    scaler = DynamicLossScaler(4, 1000, 1, 1, False)
    engine = SimpleNamespace(fp16_enabled=lambda: True, optimizer=SimpleNamespace(loss_scaler=scaler))
    never_raise_at_least_loss_scale(engine)
    counts: Any = None
    trainer: Any = SimpleNamespace(
        trained=SimpleNamespace(engine=engine),
        last_step=StepResult({"loss": 1.0}, 0.1, 1.0, counts, StepOutcome(math.inf, False, NOT_FINITE)),
        progress=SimpleNamespace(optimizer_step=9),
        strategy=SimpleNamespace(print=lambda words: None),
    )
    guard = NonFiniteGuard(max_in_a_row=2, ignores_overflow=True)
    for number in range(1, 9):
        scaler.update_scale(True)
        try:
            guard.on_step_end(trainer, {})
        except NonFiniteSteps:
            return number
    return 0


def test_overflows_count_once_the_loss_scale_can_fall_no_more(one_rank):
    assert one_rank.run(overflows_before_the_end) == [3], "4 to 2 is usual, 2 to 1 is the first that counts"
