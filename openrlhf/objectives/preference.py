"""Preference optimisation: losses of pairs of answers (pair_losses.py), mixed by weights, over a step window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from openrlhf.batching import MicroBatch
from openrlhf.config.pair_checks import LOSSES_WITHOUT_REFERENCE, MOST_SMOOTHING_OF_ROBUST
from openrlhf.errors import UserError
from openrlhf.objectives.objective import Share
from openrlhf.objectives.pair_losses import (
    FROM_SCORES_OF_THE_WINDOW,
    LOSSES,
    PairLogProbs,
    PairLossSettings,
    WindowFacts,
)
from openrlhf.objectives.pairs import PairObjective, Sums, beside_the_pass
from openrlhf.objectives.scorer import Scorer
from openrlhf.objectives.sorted_window import sorted_comparisons


class Reference(Protocol):
    """The model that the policy is held to."""

    def log_probs(self, scorer: Scorer, batch: MicroBatch) -> Tensor:
        """(Q,) of each sequence of the micro-batch, whole on every rank of a ring; without gradients."""

    def throw_away(self) -> None:
        """As of `Objective`."""


class PreferenceObjective(PairObjective):
    """The weighted mean over a window's pairs of a mix of pair losses.

    Args:
        losses: the weight of each loss of the mix, by its name in `pair_losses.LOSSES`.
        settings: numbers of their formulas.
        nll_coef: adds that many times -log p of the chosen answers, a mean over the window's chosen tokens.
        reference: None where no loss of the mix has one.

    Raises UserError for a name that is no loss, and for a loss that lacks its reference.
    """

    metrics = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    )

    accuracy = "rewards/accuracies"
    needs_window_sums = True

    def __init__(
        self,
        losses: Mapping[str, float],
        settings: PairLossSettings | None = None,
        nll_coef: float = 0.0,
        reference: Reference | None = None,
    ):
        super().__init__()
        self._settings = settings or PairLossSettings()
        _check_losses(losses, reference, self._settings)
        self._losses = dict(losses) | ({"sft": losses.get("sft", 0.0) + nll_coef} if nll_coef else {})
        self.reference = reference
        self.needs_unit_scores = not FROM_SCORES_OF_THE_WINDOW.isdisjoint(losses)

    def window_sums(self, batch: MicroBatch) -> tuple[float, ...]:
        chosen_tokens = batch.targets_of_sequences[::2]
        return (sum(weight * tokens for weight, tokens in zip(batch.unit_weights, chosen_tokens, strict=True)),)

    def unit_scores(self, scorer: Scorer, batch: MicroBatch) -> Tensor:
        tokens, weights = (beside_the_pass(one, batch) for one in (batch.targets_of_sequences, batch.unit_weights))
        pairs = self._pairs(scorer, scorer.log_probs(), self._of_reference(scorer, batch), tokens, WindowFacts())
        policy, reference = pairs.chosen - pairs.rejected, pairs.reference_chosen - pairs.reference_rejected
        return torch.stack(
            [policy, reference, (pairs.chosen_ratio + pairs.rejected_ratio) / 2, weights.to(policy)], dim=1
        )

    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        facts = self._window_facts(scorer, len(batch.unit_weights), divisor)
        tokens, weights = (beside_the_pass(one, batch) for one in (batch.targets_of_sequences, batch.unit_weights))
        reference, speaks = self._of_reference(scorer, batch), scorer.speaks_for_sequences

        def of_log_probs(log_probs: Tensor) -> tuple[Tensor, Sums]:
            pairs = self._pairs(scorer, log_probs, reference, tokens, facts)
            of_pairs = sum(weight * LOSSES[name](pairs, self._settings) for name, weight in self._losses.items())
            assert isinstance(of_pairs, Tensor), "there is a loss"
            weighted = of_pairs * weights.to(of_pairs)
            return weighted.sum() * speaks / divisor, self._sums(batch, pairs, weighted, speaks)

        return Share(*scorer.loss_of_log_probs(of_log_probs))

    def throw_away(self) -> None:
        if self.reference is not None:
            self.reference.throw_away()

    def _of_reference(self, scorer: Scorer, batch: MicroBatch) -> Tensor | None:
        return None if self.reference is None else self.reference.log_probs(scorer, batch)

    def _pairs(
        self, scorer: Scorer, log_probs: Tensor, reference: Tensor | None, tokens: Tensor, facts: WindowFacts
    ) -> PairLogProbs:
        """Args: log_probs: (N,) of the targets. reference, tokens: (Q,) of sequences; None: there is no reference."""
        log_probs = scorer.sequence_sums(log_probs)
        reference = torch.zeros_like(log_probs) if reference is None else reference.to(log_probs)
        tokens = tokens[: len(log_probs)].to(log_probs)
        return PairLogProbs(*_of_two(log_probs), *_of_two(reference), *_of_two(tokens), facts)

    def _window_facts(self, scorer: Scorer, num_pairs: int, divisor: float) -> WindowFacts:
        mean_chosen_tokens = scorer.window.sums[0] / divisor
        scores = scorer.window.unit_scores
        if scores is None:
            return WindowFacts(mean_chosen_tokens)
        policy, reference, ratio, weight = scores.unbind(1)
        shift = float(self._settings.beta * (ratio * weight).sum() / weight.sum())
        mine = sorted_comparisons(policy, reference, weight, scorer.window.first_unit, num_pairs)
        return WindowFacts(mean_chosen_tokens, shift, mine)

    def _sums(self, batch: MicroBatch, pairs: PairLogProbs, weighted_losses: Tensor, speaks: float) -> Sums:
        chosen, rejected = (self._settings.beta * ratio for ratio in self._ratios(pairs))
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": chosen > rejected,
            "rewards/margins": chosen - rejected,
            "logps/chosen": pairs.chosen,
            "logps/rejected": pairs.rejected,
        }
        sums: Sums = {name: (value.detach().double().sum(), len(chosen)) for name, value in values.items()}
        sums["loss"] = weighted_losses.detach().double().sum(), batch.unit_weight_sum
        sums |= self.sums_of_parts(batch, (chosen - rejected).detach().double())
        return {name: (total * speaks, count * speaks) for name, (total, count) in sums.items()}

    def _ratios(self, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
        """Of which a reward is beta times. Without a reference, a sum over tokens says most of all how long it is."""
        if self.reference is not None:
            return pairs.chosen_ratio, pairs.rejected_ratio
        return pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens


def _check_losses(losses: Mapping[str, float], reference: Reference | None, settings: PairLossSettings) -> None:
    if unknown := [name for name in losses if name not in LOSSES]:
        raise UserError(f"The loss {', '.join(unknown)} is none of {', '.join(LOSSES)}.")
    if not losses:
        raise UserError("A preference names one loss at least.")
    if "robust" in losses and settings.label_smoothing >= MOST_SMOOTHING_OF_ROBUST:
        raise UserError(f"The loss robust needs a label_smoothing below {MOST_SMOOTHING_OF_ROBUST}.")
    if reference is None and (lacking := [name for name in losses if name not in LOSSES_WITHOUT_REFERENCE]):
        raise UserError(f"The loss {', '.join(lacking)} needs a reference model.")


def _of_two(of_sequences: Tensor) -> tuple[Tensor, Tensor]:
    """(2U,) of sequences → (U,) of the chosen and of the rejected ones."""
    return of_sequences[::2], of_sequences[1::2]
