"""One optimizer step: the forward and backward passes of a window's micro-batches, then the update."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf.batching import MicroBatch, StepWindow, WindowCounts
from openrlhf.engine.step_guard import StepOutcome
from openrlhf.engine.trained_model import TrainedModel
from openrlhf.errors import UserError, is_out_of_memory
from openrlhf.models import PreparedModel
from openrlhf.objectives import NO_AUX_LOSS, AuxLossSettings, Objective, Scorer, WindowScores
from openrlhf.parallel.collectives import gather_objects
from openrlhf.parallel.random_streams import seed_micro_step
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.metrics import MetricSums
from openrlhf.trainer.shortage import compute_together
from openrlhf.trainer.window_scores import window_scores


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step; the same on every rank."""

    metrics: dict[str, float]  # the objective's means, the common ones; `loss` is among them
    lr: float
    seconds: float
    counts: WindowCounts
    outcome: StepOutcome
    suspects: tuple[str, ...] = ()  # ranks and rows whose loss was not finite

    @property
    def loss(self) -> float:
        return self.metrics["loss"]

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.outcome.grad_norm)


class WindowStep:
    """Runs step windows on this rank, by an objective that it knows nothing of."""

    def __init__(
        self,
        model: PreparedModel,
        trained: TrainedModel,
        strategy: DeepspeedStrategy,
        objective: Objective,
        aux_loss: AuxLossSettings = NO_AUX_LOSS,
        with_entropy: bool = False,
    ):
        self._model = model
        self._trained = trained
        self._strategy = strategy
        self._objective = objective
        self._aux_loss = aux_loss
        self._with_entropy = with_entropy
        self._is_first = True  # kernels may be compiled: that can take long
        self._pass = ""  # at work now

    def run(self, window: StepWindow, optimizer_step: int, began_at: float | None = None) -> StepResult:
        """Trains on one window.

        Args:
            optimizer_step: steps taken before this one; it decides the random numbers.
            began_at: `time.perf_counter()` when the loop began to wait for this window; None: now.

        Raises:
            OutOfMemory: memory ran out on any rank; the step can begin anew.
            UserError: memory ran out in the update, which cannot be taken back.
        """
        began_at = time.perf_counter() if began_at is None else began_at
        step_name, watchdog = f"step {optimizer_step + 1}", self._strategy.watchdog
        watchdog.note(f"counting the tokens of {step_name}")
        counts = window.count(self._strategy.groups, self._objective.weight, self._objective.window_sums)
        lr = float(self._trained.scheduler.get_last_lr()[0])
        sums = MetricSums(self._objective, self._strategy.device, self._with_entropy, bool(self._aux_loss.coef))
        losses: list[Tensor] = []
        scorer_of = functools.partial(self._scorer, optimizer_step)
        throw_away, groups = self._throw_away, self._strategy.groups
        is_zero_3 = self._strategy.ds.zero_stage == 3
        of_window = window_scores(self._objective, window, counts, groups, scorer_of, throw_away, is_zero_3)

        def compute(micro_step: int, micro_batch: MicroBatch) -> None:
            watchdog.note(f"micro-batch {micro_step + 1} of {step_name}", micro_batch.unit_names, self._is_first)
            is_last = micro_step == len(window.micro_batches) - 1
            with self._trained.micro_batch(is_last):
                self._pass = "forward pass"
                scorer = scorer_of(micro_batch, micro_step, of_window[micro_step])
                losses.append(self._forward_and_backward(scorer, micro_step, counts, sums))

        compute_together(window, compute, groups, lambda: self._pass, throw_away, is_zero_3)
        watchdog.note(f"update of {step_name}", is_long=self._is_first)
        self._is_first = False
        outcome = self._update(step_name)
        metrics = sums.means_over(self._strategy.groups.loss)
        suspects = () if math.isfinite(metrics["loss"]) else self._suspects(window, losses)
        return StepResult(metrics, lr, time.perf_counter() - began_at, counts, outcome, suspects)

    def _scorer(self, optimizer_step: int, micro_batch: MicroBatch, micro_step: int, window: WindowScores) -> Scorer:
        """The scorer of a micro-batch, which draws the random numbers of its place in the run."""
        self._seed(optimizer_step, micro_step)
        on_device, groups = micro_batch.to(self._strategy.device), self._strategy.groups
        return Scorer(self._model, on_device, groups, self._aux_loss, self._with_entropy, window)

    def _forward_and_backward(self, scorer: Scorer, micro_step: int, counts: WindowCounts, sums: MetricSums) -> Tensor:
        """One micro-batch's part of the step; returns its sum of the metric `loss`, on the device."""
        share = self._objective.loss(scorer, scorer.batch, counts.divisor)
        sums.add_share(share, scorer)
        scores = scorer.scores
        loss_share, aux_loss = _with_graph(share.loss, scores.with_graph, self._objective), scores.aux_loss
        if aux_loss is not None:
            aux_share = aux_loss * self._aux_weight(scorer.batch, micro_step, counts)
            sums.add("aux_loss", aux_share, 0)
            loss_share = loss_share + self._aux_loss.coef * aux_share
        self._pass = "backward pass"
        self._trained.backward_share(loss_share)
        return torch.as_tensor(share.sums["loss"][0])

    def _throw_away(self) -> None:
        self._trained.throw_away_gradients()
        self._objective.throw_away()

    def _update(self, step_name: str) -> StepOutcome:
        try:
            return self._trained.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"memory ran out in the update of {step_name} on rank {self._strategy.get_rank()}. Some weights may be "
                "updated and others not, so that none are kept; checkpoints are intact. What helps: --ds.adam_offload, "
                "a higher --ds.zero_stage, more ranks. Then --ckpt.load_enable goes on from the last checkpoint."
            ) from error

    def _aux_weight(self, micro_batch: MicroBatch, micro_step: int, counts: WindowCounts) -> float:
        """The share of the window's tokens over which this auxiliary loss was taken."""
        if not counts.num_tokens_global:  # every unit of the window was left out
            return 0.0
        if self._aux_loss.scope == "global":
            return counts.num_tokens_of_micro_step_global[micro_step] / counts.num_tokens_global
        return micro_batch.num_tokens / counts.num_tokens_global

    def _seed(self, optimizer_step: int, micro_step: int) -> None:
        """Ranks of a tensor-parallel group compute the same tokens, and so must drop the same ones."""
        groups = self._strategy.groups
        seed_micro_step(self._strategy.seed, optimizer_step, micro_step, groups.rank // groups.tensor_size)

    def _suspects(self, window: StepWindow, losses: list[Tensor]) -> tuple[str, ...]:
        """The rows, by rank, of micro-batches that went wrong: asked for only when a step has."""
        mine = [
            f"rank {self._strategy.get_rank()}: {', '.join(micro_batch.unit_names)}"
            for micro_batch, loss in zip(window.micro_batches, losses, strict=True)
            if not bool(torch.isfinite(loss))
        ]
        return tuple(line for lines in gather_objects(mine, self._strategy.groups.control) for line in lines)


def _with_graph(loss: Tensor, of_model: Tensor, objective: Objective) -> Tensor:
    """The loss; a constant one is joined to the model, so that every rank has its backward pass.

    Raises UserError for a loss that is no scalar tensor.
    """
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"{type(objective).__name__} has given a loss {found}: a share's loss is a scalar tensor.")
    if loss.requires_grad:
        return loss
    return loss + 0.0 * of_model.sum()
