"""The gradient norm of a step, and the guard that holds back an update that would do harm.

How a step goes. DeepSpeed's `engine.step` brings the gradients together, takes their global norm, clips, and calls the
base optimizer's own `step` (ZeRO 3 calls it once for each sub-group of parameters). Three cases decide where the guard
learns the norm:

1. Without ZeRO in fp32 DeepSpeed wraps no optimizer and keeps no norm: the guard takes it before `engine.step` clips.
2. Elsewhere DeepSpeed has the norm when it calls the base optimizer. The guard stands right there (see
   `patches/held_updates.py`): at the first call of a step it judges the norm, and all calls of the step obey.
3. Where DeepSpeed itself finds a norm that is not finite, it never calls the optimizer. The guard sees that after the
   step, by a judgement that was not asked for.

The norm is a number that all ranks have alike, so all ranks judge alike without a further collective.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from openrlhf.engine.parameters import is_shared_out
from openrlhf.engine.patches.held_updates import PATCH, updates_only_if
from openrlhf.parallel.collectives import sum_over

HISTORY_STEPS = 64
STEPS_BEFORE_SPIKES_COUNT = 16
NOT_FINITE = "the gradient norm is not finite"


@dataclass(frozen=True)
class StepOutcome:
    """Whether an optimizer step was applied, and why not; the same on every rank."""

    grad_norm: float  # global, before clipping; inf or nan where it was not finite
    is_applied: bool
    reason: str = ""  # why the update was held back


class StepGuard:
    """Holds back the update of a step whose gradient norm is not finite, or spikes above its recent history.

    A model in training has one of its own: the history is that model's.

    Args:
        max_spike: hold back a step whose norm exceeds this times the median of the last 64 applied ones; None: never.
    """

    def __init__(self, max_spike: float | None = None):
        self._max_spike = max_spike
        self._recent_norms: deque[float] = deque(maxlen=HISTORY_STEPS)

    def step(self, engine: Any, tensor_group: ProcessGroup | None = None) -> StepOutcome:
        """Takes the engine's optimizer step unless it would do harm; gradients are cleared either way.

        Args:
            tensor_group: the ranks that share the weights of a layer (tensor parallelism).
        """
        is_plain = engine.optimizer is engine.basic_optimizer  # case 1: nobody else takes the norm
        norm_before = _whole_grad_norm(engine.module, tensor_group) if is_plain else None
        outcome: StepOutcome | None = None

        def is_allowed() -> bool:
            nonlocal outcome
            if outcome is None:
                outcome = self._judge(_norm_of(engine) if norm_before is None else norm_before)
            return outcome.is_applied

        with updates_only_if(engine.basic_optimizer, is_allowed):
            engine.step()
        if outcome is None:
            outcome = _outcome_of_deepspeed(engine, norm_before)
        if outcome.is_applied:
            self._recent_norms.append(outcome.grad_norm)
        return outcome

    def _judge(self, grad_norm: float) -> StepOutcome:
        if not math.isfinite(grad_norm):
            return StepOutcome(grad_norm, False, NOT_FINITE)
        if self._max_spike is not None and len(self._recent_norms) >= STEPS_BEFORE_SPIKES_COUNT:
            usual = median(self._recent_norms)
            if grad_norm > self._max_spike * usual:
                limit = f"{self._max_spike:g} times the usual {usual:.4g}"
                return StepOutcome(grad_norm, False, f"the gradient norm {grad_norm:.4g} is over {limit}")
        return StepOutcome(grad_norm, True)

    def state_dict(self) -> dict[str, list[float]]:
        return {"recent_norms": list(self._recent_norms)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self._recent_norms = deque(state["recent_norms"], maxlen=HISTORY_STEPS)


def _outcome_of_deepspeed(engine: Any, norm_before: float | None) -> StepOutcome:
    """The guard was not asked: DeepSpeed did not come to the update (case 3), or the patches are switched off."""
    grad_norm = _norm_of(engine) if norm_before is None else norm_before
    is_applied = not PATCH.is_on() and bool(engine.was_step_applied())
    return StepOutcome(grad_norm, is_applied, "" if is_applied else NOT_FINITE)


def _norm_of(engine: Any) -> float:
    return float(engine.optimizer._global_grad_norm)


def _whole_grad_norm(module: torch.nn.Module, tensor_group: ProcessGroup | None) -> float:
    """Of gradients that every rank holds whole, and of those whose parameters are shared out: their squares add up."""
    trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
    device = next(module.parameters()).device
    square_here = _square_norm([parameter.grad for parameter in trained if is_shared_out(parameter)], device)
    square_everywhere = _square_norm([parameter.grad for parameter in trained if not is_shared_out(parameter)], device)
    return math.sqrt(float(square_everywhere + sum_over(square_here, tensor_group)))


def _square_norm(gradients: list[Any], device: torch.device) -> Tensor:
    norm = torch.nn.utils.get_total_norm(gradients).to(device)  # that of no gradients is on the CPU, whatever trains
    return norm.double().square()
