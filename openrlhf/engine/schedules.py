"""Learning-rate schedules of transformers, with one horizon for the whole run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from openrlhf.errors import UserError


@dataclass(frozen=True)
class ScheduleSettings:
    """A schedule over `num_training_steps` optimizer steps: the whole run's, whatever of it is still to do."""

    name: str = "cosine_with_min_lr"
    num_training_steps: int = 1
    warmup_ratio: float = 0.03
    min_lr_ratio: float = 0.1

    @property
    def num_warmup_steps(self) -> int:
        """Never all steps: a warm-up begins at learning rate 0, so that a run of one step would train nothing."""
        return min(math.ceil(self.num_training_steps * self.warmup_ratio), self.num_training_steps - 1)


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: ScheduleSettings
) -> torch.optim.lr_scheduler.LRScheduler:
    """Raises UserError for a name that transformers does not know."""
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType

    known = [one.value for one in SchedulerType]
    if settings.name not in known:
        raise UserError(
            f"--lr_scheduler {settings.name!r} is none that transformers knows: {', '.join(sorted(known))}."
        )
    specific = {}
    if settings.name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        specific = {"min_lr_rate": settings.min_lr_ratio}
    return get_scheduler(
        settings.name,
        optimizer,
        num_warmup_steps=settings.num_warmup_steps,
        num_training_steps=settings.num_training_steps,
        scheduler_specific_kwargs=specific,
    )
