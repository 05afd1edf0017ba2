"""The gradient norm of a step, and the veto on a step that would do harm.

DeepSpeed itself holds back the update where the norm is not finite (fp16; bf16 with `check_grad_overflow`; ZeRO 3),
but not in fp32, and it never says so. The guard stands before the optimizer's own step,
so the same rule holds in every stage.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from openrlhf.engine.tensor_shards import is_shared_out
from openrlhf.parallel.collectives import sum_over

HISTORY_STEPS = 64
STEPS_BEFORE_SPIKES_COUNT = 16


@dataclass(frozen=True)
class StepOutcome:
    """What became of an optimizer step; the same on every rank."""

    grad_norm: float  # global, before clipping; inf or nan where it was not finite
    is_applied: bool
    reason: str = ""  # why the update was held back


class StepGuard:
    """Holds back the update of a step whose gradient norm is not finite, or spikes above its recent history.

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
        is_plain = engine.optimizer is engine.basic_optimizer  # ZeRO 0 in fp32: nobody else takes the norm
        norm_before = _whole_grad_norm(engine.module, tensor_group) if is_plain else None
        verdict = _Verdict()

        def allows() -> bool:
            if verdict.is_open:
                verdict.close(*self._judge(norm_before if norm_before is not None else _norm_of(engine)))
            return verdict.is_allowed

        with _guarded(engine.basic_optimizer, allows):
            engine.step()
        if verdict.is_open:  # DeepSpeed itself never came to the update
            verdict.close(_norm_of(engine), "the gradient norm is not finite")
        if verdict.is_allowed:
            self._recent_norms.append(verdict.grad_norm)
        return StepOutcome(verdict.grad_norm, verdict.is_allowed, verdict.reason)

    def _judge(self, grad_norm: float) -> tuple[float, str]:
        if not math.isfinite(grad_norm):
            return grad_norm, "the gradient norm is not finite"
        if self._max_spike is not None and len(self._recent_norms) >= STEPS_BEFORE_SPIKES_COUNT:
            usual = median(self._recent_norms)
            if grad_norm > self._max_spike * usual:
                return (
                    grad_norm,
                    f"the gradient norm {grad_norm:.4g} is over {self._max_spike:g} times the usual {usual:.4g}",
                )
        return grad_norm, ""

    def state_dict(self) -> dict[str, list[float]]:
        return {"recent_norms": list(self._recent_norms)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self._recent_norms = deque(state["recent_norms"], maxlen=HISTORY_STEPS)


class _Verdict:
    """Made once a step, however often DeepSpeed calls the optimizer (ZeRO 3: once a sub-group)."""

    def __init__(self) -> None:
        self.is_open = True
        self.grad_norm = math.nan
        self.reason = ""

    def close(self, grad_norm: float, reason: str) -> None:
        self.is_open = False
        self.grad_norm, self.reason = grad_norm, reason

    @property
    def is_allowed(self) -> bool:
        return not self.reason


@contextmanager
def _guarded(optimizer: Any, allows: Callable[[], bool]) -> Iterator[None]:
    """While it lasts, `optimizer.step` does nothing unless `allows()`."""
    own_step = optimizer.step
    optimizer.step = lambda *args, **kwargs: own_step(*args, **kwargs) if allows() else None
    try:
        yield
    finally:
        optimizer.step = own_step


def _norm_of(engine: Any) -> float:
    return float(engine.optimizer._global_grad_norm)


def _whole_grad_norm(module: torch.nn.Module, tensor_group: ProcessGroup | None) -> float:
    """Where ZeRO partitions nothing (stage 0 in fp32): of gradients that every rank holds, and of those shared out."""
    trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
    square_here = _square_norm([parameter.grad for parameter in trained if is_shared_out(parameter)])
    square_everywhere = _square_norm([parameter.grad for parameter in trained if not is_shared_out(parameter)])
    return math.sqrt(float(square_everywhere + sum_over(square_here, tensor_group)))


def _square_norm(gradients: list[Any]) -> Tensor:
    return torch.nn.utils.get_total_norm(gradients).double().square()
