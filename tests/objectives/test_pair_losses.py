"""Each loss of a pair, and mixes of them, against the papers' formulas in plain numbers; gradients by differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from openrlhf.batching import MicroBatch, TokenSequence, Unit
from openrlhf.batching.micro_batch import make_micro_batch
from openrlhf.config.pair_checks import LOSSES_WITH_SMOOTHING, PAIR_LOSSES
from openrlhf.objectives import PreferenceObjective, Scorer, WindowScores
from openrlhf.objectives.pair_losses import LOSSES, PairLogProbs, PairLossSettings, WindowFacts
from openrlhf.objectives.sorted_window import sorted_comparisons

BETA, GAMMA = 0.3, 0.5


@dataclass(frozen=True)
class Pair:
    """Log-probs of the two answers by policy (w, l) and reference, and their lengths."""

    w: float
    l: float  # noqa: E741 -- the papers' letter
    ref_w: float
    ref_l: float
    len_w: int
    len_l: int


PAIRS = (
    Pair(-7.1, -6.2, -8.0, -6.0, 5, 4),
    Pair(-3.0, -9.5, -3.3, -7.7, 3, 8),
    Pair(-12.4, -11.9, -11.0, -12.6, 9, 9),
    Pair(-0.8, -1.1, -0.9, -0.7, 1, 2),
)


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def h(p: Pair) -> float:
    return math.log(math.exp(p.w) / math.exp(p.ref_w)) - math.log(math.exp(p.l) / math.exp(p.ref_l))


def mean_h(p: Pair) -> float:
    return (p.w - p.ref_w) / p.len_w - (p.l - p.ref_l) / p.len_l


def r_w(p: Pair) -> float:
    return BETA * (p.w - p.ref_w)


def r_l(p: Pair) -> float:
    return BETA * (p.l - p.ref_l)


def cross_entropy(x: float, eps: float) -> float:
    return -(1 - eps) * math.log(sig(x)) - eps * math.log(sig(-x))


def exo(p: Pair, eps: float) -> float:
    """Reverse KL: sum over the two answers of q log(q / label)."""
    q, label = sig(BETA * h(p)), 1 - (eps or 1e-3)
    return q * math.log(q / label) + (1 - q) * math.log((1 - q) / (1 - label))


def orpo(p: Pair, eps: float) -> float:
    mean_w, mean_l = math.exp(p.w / p.len_w), math.exp(p.l / p.len_l)
    odds_ratio = (mean_w / (1 - mean_w)) / (mean_l / (1 - mean_l))
    return -p.w / p.len_w + BETA * -math.log(sig(math.log(odds_ratio)))


def discopop(p: Pair, eps: float) -> float:
    rho = BETA * h(p)
    return (1 - sig(rho / 0.05)) * -math.log(sig(rho)) + sig(rho / 0.05) * math.exp(-rho)


OF_ONE_PAIR: dict[str, Callable[[Pair, float], float]] = {
    "sigmoid": lambda p, eps: cross_entropy(BETA * h(p), eps),
    "sigmoid_norm": lambda p, eps: cross_entropy(BETA * mean_h(p), eps),
    "ipo": lambda p, eps: (mean_h(p) - 1 / (2 * BETA)) ** 2,
    "ipo_of_sums": lambda p, eps: (h(p) - 1 / (2 * BETA)) ** 2,
    "hinge": lambda p, eps: max(0.0, 1 - BETA * h(p)),
    "robust": lambda p, eps: (
        ((1 - eps) * -math.log(sig(BETA * h(p))) - eps * -math.log(sig(-BETA * h(p)))) / (1 - 2 * eps)
    ),
    "exo_pair": exo,
    "nca_pair": lambda p, eps: -math.log(sig(r_w(p))) - 0.5 * math.log(sig(-r_w(p))) - 0.5 * math.log(sig(-r_l(p))),
    "sppo_hard": lambda p, eps: (p.w - p.ref_w - 1 / (2 * BETA)) ** 2 + (p.l - p.ref_l + 1 / (2 * BETA)) ** 2,
    "apo_zero": lambda p, eps: (1 - sig(r_w(p))) + sig(r_l(p)),
    "apo_down": lambda p, eps: sig(r_w(p)) + (1 - sig(r_w(p) - r_l(p))),
    "discopop": discopop,
    "simpo": lambda p, eps: cross_entropy(BETA * (p.w / p.len_w - p.l / p.len_l) - GAMMA, eps),
    "orpo": orpo,
}


def over_window(name: str, eps: float) -> Callable[[tuple[Pair, ...]], float]:
    """The mean over the window's pairs, as a function of the pairs."""
    if name in OF_ONE_PAIR:
        return lambda pairs: sum(OF_ONE_PAIR[name](p, eps) for p in pairs) / len(pairs)
    if name == "sft":
        return lambda pairs: -sum(p.w for p in pairs) / sum(p.len_w for p in pairs)
    if name == "bco_pair":
        shift = sum((r_w(p) + r_l(p)) / 2 for p in PAIRS) / len(PAIRS)  # held constant for the gradient
        return lambda pairs: (
            sum(-math.log(sig(r_w(p) - shift)) - math.log(sig(-(r_l(p) - shift))) for p in pairs) / len(pairs)
        )
    assert name == "aot"

    def aot(pairs: tuple[Pair, ...]) -> float:
        ours, theirs = sorted(p.w - p.l for p in pairs), sorted(p.ref_w - p.ref_l for p in pairs)
        return sum(cross_entropy(BETA * (u - v), eps) for u, v in zip(ours, theirs, strict=True)) / len(pairs)

    return aot


def of_ours(name: str, eps: float, w: torch.Tensor, l: torch.Tensor) -> torch.Tensor:  # noqa: E741
    column = {key: torch.tensor([getattr(p, key) for p in PAIRS], dtype=torch.float64) for key in vars(PAIRS[0])}
    ours, theirs = column["w"] - column["l"], column["ref_w"] - column["ref_l"]
    beside = sorted_comparisons(ours, theirs, torch.full_like(ours, 0.7), 0, len(PAIRS))
    shift = BETA * (ours.new_tensor([p.w - p.ref_w + p.l - p.ref_l for p in PAIRS]) / 2).mean().item()
    facts = WindowFacts(column["len_w"].mean().item(), shift, beside)
    pairs = PairLogProbs(w, l, column["ref_w"], column["ref_l"], column["len_w"], column["len_l"], facts)
    is_of_sums = name == "ipo_of_sums"
    settings = PairLossSettings(BETA, eps, is_of_sums, GAMMA)
    return LOSSES["ipo" if is_of_sums else name](pairs, settings).mean()


def test_each_loss_has_a_name_for_the_flag():
    assert tuple(LOSSES) == PAIR_LOSSES


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("name", [*LOSSES, "ipo_of_sums"])
def test_loss_and_gradients_are_those_of_the_paper(name, eps):
    w, l = (torch.tensor([getattr(p, key) for p in PAIRS], dtype=torch.float64).requires_grad_() for key in "wl")  # noqa: E741
    loss = of_ours(name, eps, w, l)
    loss.backward()
    assert_loss_and_slopes(over_window(name, eps), loss, w.grad, l.grad)


def assert_loss_and_slopes(
    right: Callable[[tuple[Pair, ...]], float], loss: torch.Tensor, of_w: torch.Tensor | None, of_l: torch.Tensor | None
) -> None:
    """Of `PAIRS`. Args: of_w, of_l: (U,) gradients; None: zeros."""
    assert loss.item() == pytest.approx(right(PAIRS), rel=1e-12)
    step = 1e-6
    for key, grads in (("w", of_w), ("l", of_l)):
        grads = torch.zeros(len(PAIRS)) if grads is None else grads
        for index, pair in enumerate(PAIRS):
            there, back = (
                right((*PAIRS[:index], replace(pair, **{key: getattr(pair, key) + sign * step}), *PAIRS[index + 1 :]))
                for sign in (1, -1)
            )
            assert grads[index].item() == pytest.approx((there - back) / (2 * step), rel=1e-6, abs=1e-8), (key, index)


def aot_of_window(policy: list[float], reference: list[float], weights: list[float]) -> float:
    """The sum over a window, in micro-batches of two pairs."""
    ours, theirs, mass = (torch.tensor(column, dtype=torch.float64) for column in (policy, reference, weights))
    total, none = 0.0, torch.zeros(2, dtype=torch.float64)
    for first in range(0, len(policy), 2):
        mine = slice(first, first + 2)
        facts = WindowFacts(comparisons=sorted_comparisons(ours, theirs, mass, first, 2))
        losses = LOSSES["aot"](PairLogProbs(ours[mine], none, none, none, none, none, facts), PairLossSettings(BETA))
        total += (losses * mass[mine]).sum().item()
    return total


def test_the_order_of_pairs_with_one_margin_changes_nothing_in_aot():
    """Copies of a pair differ by rounding, which a layout decides; their weights differ by the data."""
    reference, weights = [4.0, -1.0, 9.0, -6.0, 0.5, 2.0], [4.0, 0.1, 1.0, 0.3, 0.0, 2.5]
    right = aot_of_window([1.0, 1.0, 3.0, 1.0, 1.0, -2.0], reference, weights)
    for order in itertools.permutations([1.0, 1.0 + 1e-12, 1.0 + 2e-12, 1.0 + 3e-12]):
        policy = [*order[:2], 3.0, *order[2:], -2.0]
        assert aot_of_window(policy, reference, weights) == pytest.approx(right, rel=1e-10), order


def test_a_pair_of_weight_2_is_two_pairs_in_aot():
    policy, reference = [1.0, 3.0, -2.0, 0.3], [4.0, -1.0, 0.5, 2.0]
    weighted = aot_of_window(policy, reference, [2.0, 1.0, 3.0, 2.0])
    repeated = [[column[place] for place in (0, 0, 1, 2, 2, 2, 3, 3)] for column in (policy, reference)]
    assert weighted == pytest.approx(aot_of_window(*repeated, [1.0] * 8), rel=1e-12)


def test_a_window_whose_pairs_were_all_left_out_has_nothing_to_compare():
    none = torch.zeros(0, dtype=torch.float64)
    assert [len(one) for one in vars(sorted_comparisons(none, none, none, 0, 0)).values()] == [0, 0, 0]


class SaysThePairs:
    """Scorer, and reference, of `PAIRS`: two sequences each."""

    speaks_for_sequences = 1.0

    def __init__(self, sums: torch.Tensor):
        self.sequence_sums = lambda log_probs: sums
        self.loss_of_log_probs = lambda loss: loss(torch.zeros(0))

    def log_probs(self, scorer: Scorer, batch: MicroBatch) -> torch.Tensor:
        return torch.tensor([[p.ref_w, p.ref_l] for p in PAIRS], dtype=torch.float64).flatten()


@pytest.mark.parametrize(
    ("mix", "nll_coef"),
    [
        ({"sigmoid": 1.0}, 0.4),
        ({"sft": 0.1}, 0.4),
        ({"sigmoid": 0.7, "sppo_hard": 0.02, "simpo": 3.0, "sft": 0.1}, 0.0),
        ({"exo_pair": 0.5, "orpo": 2.0}, 0.3),
    ],
    ids=str,
)
def test_a_mix_is_the_weighted_sum_of_its_losses_and_of_the_nll(mix, nll_coef):
    sequences = [
        tuple(TokenSequence(torch.ones(n + 1).long(), torch.ones(n + 1)) for n in (p.len_w, p.len_l)) for p in PAIRS
    ]
    batch = make_micro_batch([Unit(both, "") for both in sequences], True)
    sums = torch.tensor([[p.w, p.l] for p in PAIRS], dtype=torch.float64).flatten().requires_grad_()
    scorer = SaysThePairs(sums)
    objective = PreferenceObjective(mix, PairLossSettings(BETA, 0.2, simpo_gamma=GAMMA), nll_coef, scorer)
    scorer.window = WindowScores(objective.window_sums(batch))
    share = objective.loss(scorer, batch, len(PAIRS))
    share.loss.backward()

    def right(pairs: tuple[Pair, ...]) -> float:
        nll = -sum(p.w for p in pairs) / sum(p.len_w for p in pairs)
        return sum(weight * over_window(name, 0.2)(pairs) for name, weight in mix.items()) + nll_coef * nll

    assert_loss_and_slopes(right, share.loss, *sums.grad.view(-1, 2).unbind(1))


@pytest.mark.parametrize("has_reference", [True, False])
def test_rewards_are_sums_against_a_reference_and_means_over_tokens_without_one(has_reference):
    """By sums, the first pair's chosen answer would have the lower reward for being the longer one."""
    column = {key: torch.tensor([float(getattr(p, key)) for p in PAIRS], dtype=torch.float64) for key in vars(PAIRS[0])}
    sequences = [
        tuple(TokenSequence(torch.ones(n + 1).long(), torch.ones(n + 1)) for n in (p.len_w, p.len_l)) for p in PAIRS
    ]
    batch = make_micro_batch([Unit(both, "") for both in sequences], True)
    scorer = SaysThePairs(torch.stack([column["w"], column["l"]], dim=1).flatten())
    objective = PreferenceObjective({"simpo": 1.0}, PairLossSettings(BETA), 0.0, scorer if has_reference else None)
    scorer.window = WindowScores(objective.window_sums(batch))
    sums = objective.loss(scorer, batch, len(PAIRS)).sums
    w, l = column["w"] - column["ref_w"], column["l"] - column["ref_l"]  # noqa: E741
    if not has_reference:
        w, l = column["w"] / column["len_w"], column["l"] / column["len_l"]  # noqa: E741
    assert float(sums["rewards/chosen"][0]) == pytest.approx(BETA * w.sum().item())
    assert float(sums["rewards/rejected"][0]) == pytest.approx(BETA * l.sum().item())
    assert int(sums["rewards/accuracies"][0]) == int((w > l).sum())
    assert float(sums["logps/chosen"][0]) == pytest.approx(column["w"].sum().item())


def of_two(name: str, chosen: float, rejected: float, dtype: torch.dtype) -> tuple[float, float, float]:
    """The loss of a pair of one-token answers with these log-probs and a reference of 0, and its slopes."""
    logps = torch.tensor([chosen, rejected], dtype=dtype, requires_grad=True)
    none, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    loss = LOSSES[name](PairLogProbs(*logps.split(1), none, none, one, one, WindowFacts()), PairLossSettings(beta=1.0))
    loss.backward()
    return loss.item(), *logps.grad.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_of_a_sure_answer_is_finite(dtype):
    assert of_two("orpo", 0.0, -1.0, dtype) == pytest.approx((0.0, -1.0, 0.0), abs=1e-6)
    loss, of_chosen, of_rejected = of_two("orpo", -1.0, 0.0, dtype)
    log_odds = -1.0 - math.log(1 - math.exp(-1.0))
    assert loss == pytest.approx(1.0 - math.log(torch.finfo(dtype).tiny) - log_odds, rel=1e-6)
    assert (of_chosen, of_rejected) == pytest.approx((-1.0 - 1 / (1 - math.exp(-1.0)), 0.0), rel=1e-6)
    assert of_two("orpo", 0.0, 0.0, dtype) == pytest.approx((math.log(2), -1.0, 0.0), rel=1e-6)


@pytest.mark.parametrize("margin", [-200.0, -2.0, -0.01, 0.0, 0.01, 2.0, 200.0])
def test_discopop_is_the_formula_for_any_margin(margin):
    """In float64 neither part of the formula overflows so soon."""
    x = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
    is_large = (x / 0.05).sigmoid()
    right = -torch.nn.functional.logsigmoid(x) * (1 - is_large) + torch.exp(-x) * is_large
    right.backward()
    expected = (right.item(), x.grad.item(), -x.grad.item())
    assert of_two("discopop", margin, 0.0, torch.float32) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_those_losses_read_the_smoothing_of_which_the_command_says_so():
    w, l = (torch.tensor([getattr(p, key) for p in PAIRS], dtype=torch.float64) for key in "wl")  # noqa: E741
    read = [name for name in LOSSES if of_ours(name, 0.2, w, l) != of_ours(name, 0.0, w, l)]
    assert sorted(read) == sorted(LOSSES_WITH_SMOOTHING)


def test_policy_and_reference_alike_give_ln_2_and_no_margin():
    logps = torch.tensor([-4.0, -7.0])
    pairs = PairLogProbs(logps, logps - 1, logps, logps - 1, logps * 0 + 3, logps * 0 + 4, WindowFacts())
    assert LOSSES["sigmoid"](pairs, PairLossSettings()).tolist() == pytest.approx([math.log(2)] * 2)
    assert pairs.difference.tolist() == [0.0, 0.0]


def test_swapping_a_pair_negates_its_margin_and_half_the_labels_wrong_is_symmetric():
    w, l, ref = torch.tensor([-4.0]), torch.tensor([-7.0]), torch.tensor([-5.0])  # noqa: E741
    one, two = (PairLogProbs(a, b, ref, ref, ref * 0 + 3, ref * 0 + 4, WindowFacts()) for a, b in ((w, l), (l, w)))
    assert one.difference.item() == -two.difference.item()
    half = PairLossSettings(label_smoothing=0.5)
    assert LOSSES["sigmoid"](one, half).item() == pytest.approx(LOSSES["sigmoid"](two, half).item())
    robust, sigmoid = (LOSSES[name](one, PairLossSettings()).item() for name in ("robust", "sigmoid"))
    assert robust == sigmoid
