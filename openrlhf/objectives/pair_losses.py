"""The losses of a pair of answers, each a formula on the log-probs of the two; by name.

Shapes: U pairs. An answer's log-prob is the sum over its target tokens. Notation of the comments: y_w is the chosen
answer, y_l the rejected one, pi the policy, ref the reference, r(y) = beta * log(pi(y) / ref(y)) the implicit reward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from openrlhf.config.pair_checks import LOSSES_WITHOUT_REFERENCE
from openrlhf.objectives.sorted_window import SortedComparisons

_DISCOPOP_TEMPERATURE = 0.05  # arXiv 2406.08414
_EXO_LEAST_SMOOTHING = 1e-3  # EXO takes the log of the smoothed label: 0 has none


@dataclass(frozen=True)
class PairLossSettings:
    """Numbers of the formulas.

    Attributes:
        beta: strength of the tie to the reference; for `simpo` the scale of the mean log-probs, for `orpo` the weight
            of the odds ratio.
        label_smoothing: the probability that a label is wrong, 0 to below 0.5 (`robust`), or to 1.
        ipo_sums: IPO on sums of log-ratios, in place of their means over an answer's tokens.
        simpo_gamma: the margin of `simpo`.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    ipo_sums: bool = False
    simpo_gamma: float = 0.5


@dataclass(frozen=True)
class PairLogProbs:
    """What a loss knows of U pairs; (U,) each.

    Attributes:
        chosen, rejected: log pi(y_w), log pi(y_l), with gradients.
        reference_chosen, reference_rejected: the same by the reference; zeros where the loss has none.
        chosen_tokens, rejected_tokens: targets of each answer.
        window: facts of the whole step window, for the losses that need them.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    window: WindowFacts

    @property
    def chosen_ratio(self) -> Tensor:
        """log(pi(y_w) / ref(y_w))"""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log(pi(y_l) / ref(y_l))"""
        return self.rejected - self.reference_rejected

    @property
    def difference(self) -> Tensor:
        """Of the two log-ratios; beta times it is the reward margin."""
        return self.chosen_ratio - self.rejected_ratio


@dataclass(frozen=True)
class WindowFacts:
    """Facts of a step window that the loss of each of its pairs depends on.

    Attributes:
        mean_chosen_tokens: targets of a chosen answer, mean over the window's pairs by their weights.
        reward_shift: mean over the window's pairs of (r(y_w) + r(y_l)) / 2, a constant; for `bco_pair`.
        comparisons: of each pair with the constants that the sorted window puts beside it; for `aot`.
    """

    mean_chosen_tokens: float = 1.0
    reward_shift: float = 0.0
    comparisons: SortedComparisons | None = None


PairLoss = Callable[[PairLogProbs, PairLossSettings], Tensor]


def sigmoid(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """DPO (arXiv 2305.18290, equation 7); with label smoothing cDPO."""
    return _smoothed_logistic(settings.beta * pairs.difference, settings.label_smoothing)


def sigmoid_norm(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """DPO on log-ratios averaged over each answer's tokens (Tülu 3, arXiv 2411.15124)."""
    return _smoothed_logistic(settings.beta * _mean_difference(pairs), settings.label_smoothing)


def ipo(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """IPO (arXiv 2310.12036, equation 17): (h - 1 / (2 beta))^2, h the difference of the log-ratios."""
    difference = pairs.difference if settings.ipo_sums else _mean_difference(pairs)
    return (difference - 1 / (2 * settings.beta)) ** 2


def hinge(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """SLiC's hinge on the reward margin (arXiv 2309.06657)."""
    return torch.relu(1 - settings.beta * pairs.difference)


def robust(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """Robust DPO (arXiv 2403.00409): an unbiased estimate of DPO's loss under flipped labels."""
    margin, smoothing = settings.beta * pairs.difference, settings.label_smoothing
    return (-(1 - smoothing) * logsigmoid(margin) + smoothing * logsigmoid(-margin)) / (1 - 2 * smoothing)


def exo_pair(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """EXO on pairs (arXiv 2402.00856): the reverse KL from the policy's preference to the smoothed label."""
    margin = settings.beta * pairs.difference
    smoothing = torch.as_tensor(settings.label_smoothing or _EXO_LEAST_SMOOTHING, dtype=margin.dtype)
    prefers, prefers_not = logsigmoid(margin), logsigmoid(-margin)
    return prefers.exp() * (prefers - torch.log1p(-smoothing)) + prefers_not.exp() * (prefers_not - smoothing.log())


def nca_pair(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """NCA on pairs (arXiv 2402.05369)."""
    chosen, rejected = _rewards(pairs, settings)
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """BCO (arXiv 2404.04656); the shift is the mean reward of the step window."""
    chosen, rejected = _rewards(pairs, settings)
    shift = pairs.window.reward_shift
    return -logsigmoid(chosen - shift) - logsigmoid(-(rejected - shift))


def sppo_hard(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """SPPO with hard labels (arXiv 2405.00675; its eta is 1 / beta)."""
    target = 0.5 / settings.beta
    return (pairs.chosen_ratio - target) ** 2 + (pairs.rejected_ratio + target) ** 2


def aot(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """AOT, paired (arXiv 2406.05882): the i-th smallest margin of the policy against the reference's.

    Both are sorted over the whole step window, where a pair stands as often as it weighs: its loss is a mean.
    """
    assert pairs.window.comparisons is not None, "the window was looked at"
    beside, margin = pairs.window.comparisons, pairs.chosen - pairs.rejected
    place, reference, share = beside.pair.to(margin.device), beside.reference.to(margin), beside.share.to(margin)
    losses = _smoothed_logistic(settings.beta * (margin[place] - reference), settings.label_smoothing)
    return torch.zeros_like(margin).index_add(0, place, share * losses)


def apo_zero(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """APO-zero (arXiv 2408.06266): chosen answers more likely, rejected ones less."""
    chosen, rejected = _rewards(pairs, settings)
    return 1 - chosen.sigmoid() + rejected.sigmoid()


def apo_down(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """APO-down (arXiv 2408.06266): both less likely, rejected answers more so."""
    chosen, rejected = _rewards(pairs, settings)
    return chosen.sigmoid() + 1 - (chosen - rejected).sigmoid()


def discopop(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """DiscoPOP (arXiv 2406.08414): logistic and exponential loss, mixed by the margin."""
    margin = settings.beta * pairs.difference
    scaled = margin / _DISCOPOP_TEMPERATURE
    # The exponential times sigmoid(scaled): of a strongly wrong pair the first is infinite alone, and the second 0.
    return -logsigmoid(margin) * (1 - scaled.sigmoid()) + torch.exp(logsigmoid(scaled) - margin)


def simpo(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """SimPO (arXiv 2405.14734): mean log-probs, a margin, no reference."""
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    return _smoothed_logistic(settings.beta * (chosen - rejected) - settings.simpo_gamma, settings.label_smoothing)


def orpo(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """ORPO (arXiv 2403.07691): -log p of the chosen answer, and the log of the odds' ratio."""
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    return -chosen - settings.beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def sft(pairs: PairLogProbs, settings: PairLossSettings) -> Tensor:
    """-log p of the chosen answers, mean over the window's chosen tokens."""
    return -pairs.chosen / pairs.window.mean_chosen_tokens


LOSSES: dict[str, PairLoss] = {
    loss.__name__: loss
    for loss in (
        sigmoid, ipo, hinge, robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot, apo_zero, apo_down, discopop,
        sigmoid_norm, simpo, orpo, sft,
    )
}  # fmt: skip
FROM_SCORES_OF_THE_WINDOW = frozenset({"aot", "bco_pair"})


def needs_reference(names: Iterable[str]) -> bool:
    """Whether any of these losses compares with a reference."""
    return not {*names}.issubset(LOSSES_WITHOUT_REFERENCE)


def _rewards(pairs: PairLogProbs, settings: PairLossSettings) -> tuple[Tensor, Tensor]:
    return settings.beta * pairs.chosen_ratio, settings.beta * pairs.rejected_ratio


def _mean_difference(pairs: PairLogProbs) -> Tensor:
    return pairs.chosen_ratio / pairs.chosen_tokens - pairs.rejected_ratio / pairs.rejected_tokens


def _smoothed_logistic(margin: Tensor, smoothing: float) -> Tensor:
    """-log sigmoid(margin), where the label is wrong with probability `smoothing`."""
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def _log_odds(log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(log_prob).

    That of p = 1 is infinite, and its slope times that of a loss behind it no number: it is taken at the last p before
    it that the numbers have, and has no slope, as the logits of a sure token have none.
    """
    below = log_prob.clamp(max=-torch.finfo(log_prob.dtype).tiny)
    return below - torch.log(-torch.expm1(below))
