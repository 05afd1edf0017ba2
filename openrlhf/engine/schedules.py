"""Learning-rate schedules of transformers, with one horizon for the whole run."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from openrlhf.errors import UserError


def build_schedule(
    optimizer: Optimizer,
    name: str = "cosine_with_min_lr",
    num_training_steps: int = 1,
    warmup_ratio: float = 0.03,
    min_lr_ratio: float = 0.1,
) -> LRScheduler:
    """A schedule over the whole run, however much of it is still to do.

    Args:
        num_training_steps: optimizer steps of the whole run.
        warmup_ratio: share of the steps in which the learning rate rises from 0.
        min_lr_ratio: the lowest learning rate of the schedules that have one, as a share of the highest.

    Raises UserError for a name that transformers does not know.
    """
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType

    known = [one.value for one in SchedulerType]
    if name not in known:
        raise UserError(f"--lr_scheduler {name!r} is none that transformers knows: {', '.join(sorted(known))}.")
    specific = {}
    if name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        specific = {"min_lr_rate": min_lr_ratio}
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=_num_warmup_steps(num_training_steps, warmup_ratio),
        num_training_steps=num_training_steps,
        scheduler_specific_kwargs=specific,
    )


def _num_warmup_steps(num_training_steps: int, warmup_ratio: float) -> int:
    """Never all steps: a warm-up begins at learning rate 0, so that a run of one step would train nothing."""
    return min(math.ceil(num_training_steps * warmup_ratio), num_training_steps - 1)
