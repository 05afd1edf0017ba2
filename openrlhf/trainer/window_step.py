"""One optimizer step: the forward and backward passes of a window's micro-batches, then the update."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from openrlhf.batching import MicroBatch, StepWindow, WindowCounts
from openrlhf.engine.step_guard import StepOutcome
from openrlhf.models import Actor, TargetScores
from openrlhf.parallel.collectives import gather_objects
from openrlhf.parallel.random_streams import seed_micro_step
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.tracking import WeightedSums

AuxLossScope = Literal["micro_batch", "global"]


@dataclass(frozen=True)
class AuxLossSettings:
    """The load-balancing loss of a mixture of experts."""

    coef: float = 0.0
    scope: AuxLossScope = "micro_batch"


@dataclass(frozen=True)
class StepResult:
    """What a step did; the same on every rank."""

    loss: float  # sum of -log p over the target tokens of the window / their number
    aux_loss: float | None
    lr: float
    seconds: float
    counts: WindowCounts
    outcome: StepOutcome
    suspects: tuple[str, ...] = ()  # ranks and samples whose loss was not finite

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.outcome.grad_norm)


class WindowStep:
    """Runs step windows on this rank."""

    def __init__(self, model: Actor, strategy: DeepspeedStrategy, scheduler: Any, aux_loss: AuxLossSettings):
        self._model = model
        self._strategy = strategy
        self._scheduler = scheduler
        self._aux_loss = aux_loss
        self._is_first = True  # kernels may be compiled: that can take long

    def run(self, window: StepWindow, optimizer_step: int, began_at: float | None = None) -> StepResult:
        """Trains on one window.

        Args:
            optimizer_step: steps taken before this one; it decides the random numbers.
            began_at: `time.perf_counter()` when the loop began to wait for this window; None: now.
        """
        began_at = time.perf_counter() if began_at is None else began_at
        step_name, watchdog = f"step {optimizer_step + 1}", self._strategy.watchdog
        watchdog.note(f"counting the tokens of {step_name}")
        counts = window.count(self._strategy.groups)
        lr = self._scheduler.get_last_lr()[0]
        sums = WeightedSums(("loss", "aux_loss"), self._strategy.device)
        nll_sums = []
        for micro_step, micro_batch in enumerate(window.micro_batches):
            self._seed(optimizer_step, micro_step)
            watchdog.note(f"micro-batch {micro_step + 1} of {step_name}", micro_batch.sample_names, self._is_first)
            is_last = micro_step == len(window.micro_batches) - 1
            with self._strategy.micro_batch(self._model, is_last):
                nll_sums.append(self._forward_and_backward(micro_batch, micro_step, counts, sums))
        watchdog.note(f"update of {step_name}", is_long=self._is_first)
        self._is_first = False
        outcome = self._strategy.apply_step(self._model, self._scheduler)
        self._strategy.sum_over_loss_ranks(sums.as_tensor())
        means = sums.sums()
        loss = means["loss"] / max(1, counts.num_target_tokens_global)
        suspects = () if math.isfinite(loss) else self._suspects(window, nll_sums)
        aux_loss = means["aux_loss"] if self._aux_loss.coef else None
        return StepResult(loss, aux_loss, lr, time.perf_counter() - began_at, counts, outcome, suspects)

    def _forward_and_backward(
        self, micro_batch: MicroBatch, micro_step: int, counts: WindowCounts, sums: WeightedSums
    ) -> Tensor:
        """One micro-batch's part of the step; returns its unweighted sum of -log p, on the device."""
        on_device = micro_batch.to(self._strategy.device)
        divisor = counts.target_weight_sum_global or 1.0  # a window of a loader of the user's own may have no target
        weights = on_device.target_weights / divisor
        scores = score(self._model, on_device, self._strategy, self._aux_loss, weights)
        nll_sum = -scores.log_probs.double().sum()
        sums.add("loss", nll_sum)
        assert scores.weighted_sum is not None, "weights were given"
        loss_share = -scores.weighted_sum
        if scores.aux_loss is not None:
            aux_share = scores.aux_loss * self._aux_weight(micro_batch, micro_step, counts)
            sums.add("aux_loss", aux_share)
            loss_share = loss_share + self._aux_loss.coef * aux_share
        self._strategy.backward_share(loss_share, self._model)
        return nll_sum

    def _aux_weight(self, micro_batch: MicroBatch, micro_step: int, counts: WindowCounts) -> float:
        """The share of the window's tokens over which this auxiliary loss was taken."""
        if self._aux_loss.scope == "global":
            return counts.num_tokens_of_micro_step_global[micro_step] / counts.num_tokens_global
        return micro_batch.num_tokens / counts.num_tokens_global

    def _seed(self, optimizer_step: int, micro_step: int) -> None:
        """Ranks of a tensor-parallel group compute the same tokens, and so must drop the same ones."""
        groups = self._strategy.groups
        seed_micro_step(self._strategy.seed, optimizer_step, micro_step, groups.rank // groups.tensor_size)

    def _suspects(self, window: StepWindow, nll_sums: list[Tensor]) -> tuple[str, ...]:
        """Which samples, on which rank: asked for only when a step has gone wrong."""
        mine = [
            f"rank {self._strategy.get_rank()}: {', '.join(micro_batch.sample_names)}"
            for micro_batch, nll_sum in zip(window.micro_batches, nll_sums, strict=True)
            if not bool(torch.isfinite(nll_sum))
        ]
        return tuple(line for lines in gather_objects(mine, self._strategy.groups.control) for line in lines)


def score(
    model: Actor,
    micro_batch: MicroBatch,
    strategy: DeepspeedStrategy,
    aux_loss: AuxLossSettings,
    target_weights: Tensor | None = None,
) -> TargetScores:
    """The log-probs of a micro-batch's target tokens, on its device; and their weighted sum, if weights are given."""
    groups = strategy.groups
    is_real_token = None
    if not micro_batch.sample_names:  # its tokens stand there for the collectives' sake: no expert's load counts them
        is_real_token = torch.zeros_like(micro_batch.input_ids.flatten(), dtype=torch.bool)
    return model.score_targets(
        input_ids=micro_batch.input_ids,
        position_ids=micro_batch.position_ids,
        attention_mask=micro_batch.attention_mask,
        cu_seqlens=micro_batch.cu_seqlens,
        max_seqlen=micro_batch.max_seqlen,
        target_index=micro_batch.target_index,
        target_ids=micro_batch.target_ids,
        target_weights=target_weights,
        sequence_group=groups.sequence,
        with_aux_loss=aux_loss.coef != 0,
        is_real_token=is_real_token,
        router_group=groups.loss if aux_loss.scope == "global" else groups.sequence,
    )
