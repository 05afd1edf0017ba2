"""The samples of a step: what a trainer's batch size and a loader of the user's own say against the strategy's."""

from __future__ import annotations

from openrlhf.errors import UserError
from openrlhf.strategy import DeepspeedStrategy


def check_batch_size(trainer: str, batch_size: int, strategy: DeepspeedStrategy) -> None:
    """Raises UserError where the trainer of that name was given another batch size; 1: it was given none."""
    if batch_size not in (1, strategy.train_batch_size):
        raise UserError(
            f"{trainer}(batch_size={batch_size}) contradicts the strategy, whose steps have "
            f"{strategy.train_batch_size} samples (train_batch_size). Give both the same number, or leave the "
            "trainer's out."
        )


def check_step_size(strategy: DeepspeedStrategy, num_samples: int, is_said: bool) -> None:
    """Compares the samples of a whole step over a loader of the user's own with the batch size.

    Args: is_said: the trainer was given the batch size. Otherwise a difference is told, and no error.
    Raises UserError where they differ.
    """
    if num_samples == strategy.train_batch_size:
        return
    found = (
        f"a step has {num_samples} samples over all ranks, and train_batch_size is {strategy.train_batch_size}: "
        f"{strategy.accumulated_gradient} batches of your loader on each rank make a step"
    )
    if not is_said:
        strategy.print(f"note: {found}.")
        return
    raise UserError(
        f"{found}. Let each batch have micro_train_batch_size ({strategy.micro_train_batch_size}) samples, or set "
        "micro_train_batch_size to what they have. Where they vary on purpose, leave the trainer's batch_size out."
    )
