"""Evaluation: every row once, weighted by tokens, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from openrlhf.batching import StepWindow, StepWindowLoader, windows_of_foreign_loader
from openrlhf.models import Actor
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.tracking import WeightedSums
from openrlhf.trainer.window_step import AuxLossSettings, score


@dataclass(frozen=True)
class EvalResult:
    """The same on every rank."""

    loss: float  # sum of -log p over all target tokens / their number
    num_target_tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(
    model: Actor, loader: StepWindowLoader | Iterable[Any], strategy: DeepspeedStrategy, pad_token_id: int
) -> EvalResult:
    """The loss over all rows of `loader`. Leaves the model in training mode if it was."""
    was_training = model.training
    model.eval()
    sums = WeightedSums(("loss",), strategy.device)
    with torch.no_grad():
        windows = tqdm(
            _windows(loader, strategy, pad_token_id),
            desc="evaluation",
            leave=False,
            disable=None if strategy.is_rank_0() else True,
        )
        for number, window in enumerate(windows, start=1):
            strategy.watchdog.note(f"evaluation, window {number}")
            for micro_batch in window.micro_batches:
                scores = score(model, micro_batch.to(strategy.device), strategy, AuxLossSettings())
                sums.add("loss", -scores.log_probs.double().sum(), len(micro_batch.target_ids))
    model.train(was_training)
    total, count = strategy.sum_over_loss_ranks(sums.as_tensor())[0].tolist()
    return EvalResult(total / count if count else math.nan, int(count))


def _windows(
    loader: StepWindowLoader | Iterable[Any], strategy: DeepspeedStrategy, pad_token_id: int
) -> Iterator[StepWindow]:
    if isinstance(loader, StepWindowLoader):
        return loader.windows(max_epochs=1)
    return windows_of_foreign_loader(
        loader, 1, strategy.micro_batch_format(pad_token_id), strategy.groups, max_epochs=1
    )
