"""The small face of a model that objectives see.

Shapes: N target tokens of this rank, Q sequences of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from openrlhf.batching import MicroBatch
from openrlhf.errors import UserError
from openrlhf.models import Actor, PreparedModel, RewardModel, SequenceScores, TargetScores
from openrlhf.parallel.collectives import SumOverRanks
from openrlhf.parallel.groups import ProcessGroups

AuxLossScope = Literal["micro_batch", "global"]
Weights = Tensor | Callable[[Tensor], Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class AuxLossSettings:
    """The load-balancing loss of a mixture of experts."""

    coef: float = 0.0
    scope: AuxLossScope = "micro_batch"


NO_AUX_LOSS = AuxLossSettings()


@dataclass(frozen=True)
class WindowScores:
    """What an objective has asked to know of the whole step window, all ranks together.

    Attributes:
        sums: totals of `Objective.window_sums`.
        unit_scores: (all units of the window, K) of `Objective.unit_scores`, float64; None where it needs none.
        first_unit: where in them the units of this micro-batch begin.
    """

    sums: tuple[float, ...] = ()
    unit_scores: Tensor | None = None
    first_unit: int = 0


NOTHING_OF_THE_WINDOW = WindowScores()
_ASKED_TWICE = "The objective has asked its scorer for log-probs twice, or values too: a micro-batch takes one pass."


class Scorer:
    """The scores that the model gives one micro-batch. An objective calls one of its methods, once."""

    def __init__(
        self,
        model: PreparedModel,
        batch: MicroBatch,
        groups: ProcessGroups,
        aux_loss: AuxLossSettings = NO_AUX_LOSS,
        with_entropy: bool = False,
        window: WindowScores = NOTHING_OF_THE_WINDOW,
    ):
        self.window = window
        self.model = model
        self.batch = batch
        self._groups = groups
        self._aux_loss = aux_loss
        self._with_entropy = with_entropy
        self._scores: TargetScores | SequenceScores | None = None

    @property
    def scores(self) -> TargetScores | SequenceScores:
        """All that the forward pass has said."""
        if self._scores is None:
            raise UserError("The objective has not asked its scorer for log-probs: each micro-batch takes one pass.")
        return self._scores

    def log_probs(self) -> Tensor:
        """(N,) log-probs of this rank's targets, with gradients."""
        return self._run(None).log_probs

    def weighted_log_probs(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """The log-probs, without gradients, and their weighted sum, which has one. Faster than `log_probs`.

        Args: weights: (N,) float32, or a function that gives them for the log-probs (N,); constants for the gradient.
        """
        scores = self._run(weights)
        assert scores.weighted_sum is not None, "weights were given"
        return scores.log_probs, scores.weighted_sum

    def loss_of_log_probs(self, loss: Callable[[Tensor], tuple[Tensor, T]]) -> tuple[Tensor, T]:
        """What `loss` gives for the log-probs: the loss, a scalar with a gradient, and whatever it says beside it.

        The loss may be any function of the log-probs (N,). Its slopes are their weights, so that the vocabulary is
        passed over once less than for a loss of `log_probs()`. A ring, whose ranks must all take part, does that.
        """
        if self._groups.sequence is not None or not torch.is_grad_enabled():
            return loss(self.log_probs())

        def slopes(log_probs: Tensor) -> Tensor:
            with torch.enable_grad():
                own = log_probs.detach().requires_grad_()
                return torch.autograd.grad(loss(own)[0], own)[0]

        log_probs, weighted_sum = self.weighted_log_probs(slopes)
        value, beside = loss(log_probs)
        return value + (weighted_sum - weighted_sum.detach()), beside

    def sequence_values(self) -> Tensor:
        """(Q,) the value that a reward model reads at each sequence's last token, whole on every rank of a ring."""
        model = self.model
        assert isinstance(model, RewardModel), "only a reward model gives values"
        scores = model.score_sequences(last_index=self.batch.last_index, **self._inputs())
        self._scores, values = scores, scores.values
        of_sequences = values.new_zeros(self.batch.num_sequences).index_add(0, self.batch.last_sequence, values)
        return self._whole_over_ring(of_sequences)

    def sequence_sums(self, of_targets: Tensor) -> Tensor:
        """(Q,) the sum of `of_targets` (N,) over each sequence's targets; differentiable, over a ring too.

        Every rank of a ring gets the whole sums. A loss or a count of whole sequences is multiplied by
        `speaks_for_sequences`, so that the ring counts it once.
        """
        sums = of_targets.new_zeros(self.batch.num_sequences)
        sums = sums.index_add(0, self.batch.target_sequence, of_targets)
        return self._whole_over_ring(sums)

    def _whole_over_ring(self, sums: Tensor) -> Tensor:
        return sums if self._groups.sequence is None else SumOverRanks.apply(sums, self._groups.sequence)

    def beside(self, model: PreparedModel) -> Scorer:
        """A scorer of the same micro-batch by another model, or by this one in another state."""
        return Scorer(model, self.batch, self._groups)

    @property
    def speaks_for_sequences(self) -> float:
        """1.0 on the rank that counts losses of whole sequences, 0.0 on the other ranks of its ring."""
        return float(self._groups.sequence_rank == 0)

    def _run(self, weights: Weights | None) -> TargetScores:
        model, batch = self.model, self.batch
        assert isinstance(model, Actor), "only a language model gives log-probs"
        self._scores = scores = model.score_targets(
            target_index=batch.target_index,
            target_ids=batch.target_ids,
            target_weights=weights,
            with_entropy=self._with_entropy,
            **self._inputs(),
        )
        return scores

    def _inputs(self) -> dict[str, Any]:
        """What a pass needs, whatever is asked; a second pass is refused."""
        if self._scores is not None:
            raise UserError(_ASKED_TWICE)
        batch, groups = self.batch, self._groups
        is_real_token = None
        if not batch.unit_names:  # its tokens stand there for the collectives' sake: no expert's load counts them
            is_real_token = torch.zeros_like(batch.input_ids.flatten(), dtype=torch.bool)
        return dict(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            prompt_of=batch.prompt_of,
            sequence_group=groups.sequence,
            with_aux_loss=self._aux_loss.coef != 0,
            is_real_token=is_real_token,
            router_group=groups.loss if self._aux_loss.scope == "global" else groups.sequence,
        )
