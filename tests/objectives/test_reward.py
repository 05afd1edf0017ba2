"""Reward models: the same in every layout, equal to transformers' own classifier in a float64 loop."""

from __future__ import annotations

import functools
import math
import random
from types import SimpleNamespace

import pytest
import torch

from openrlhf.batching import TokenSequence, Unit
from openrlhf.batching.micro_batch import make_micro_batch
from openrlhf.models import RewardModel
from openrlhf.objectives import RewardObjective, Scorer
from openrlhf.parallel.groups import alone
from tests.helpers.ranks import RankPool
from tests.helpers.tiny_models import tiny_model
from tests.objectives import reward_cases
from tests.objectives.pair_cases import BATCH_SIZE, NUM_PAIRS, NUM_STEPS, Pairs
from tests.objectives.reward_cases import CENTER_COEF, tiny_classifier

PACKED = dict(packing_samples=True)
RING = dict(packing_samples=True, ring_attn_size=2)
LAYOUTS = [
    ("one_rank", dict(zero_stage=0)),
    ("one_rank", dict(zero_stage=2, max_tokens=120, **PACKED)),
    ("two_ranks", dict(zero_stage=3, **PACKED)),
    ("two_ranks", dict(zero_stage=1, max_tokens=130)),
    ("two_ranks", dict(zero_stage=2, **RING)),
    ("two_ranks", dict(zero_stage=3, max_tokens=60, **RING)),
]


@functools.cache
def float64_curve(kind: str = "llama") -> list[tuple[float, float, float]]:
    """One answer at a time by transformers' own classifier."""
    pairs, model = Pairs(), tiny_classifier(kind, torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0)
    results, order = [], list(range(NUM_PAIRS)) * 2
    for start in [0, 4, 8, 10, 14][:NUM_STEPS]:
        rows = order[start : min(start + BATCH_SIZE, NUM_PAIRS * (1 + start // NUM_PAIRS))]
        losses, hits = [], 0
        for row in rows:
            chosen, rejected = (model(input_ids=ids[None]).logits[0, 0] for ids in pairs.ids[row])
            loss = -torch.nn.functional.logsigmoid(chosen - rejected - pairs.margins[row])
            losses.append(loss + CENTER_COEF * (chosen + rejected) ** 2)
            hits += int(chosen > rejected)
        optimizer.zero_grad()
        loss = torch.stack(losses).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        results.append((loss.item(), hits / len(rows), norm.item()))
    return results


def assert_same_curves(found, expected):
    for step, (one, right) in enumerate(zip(found, expected, strict=True)):
        assert one == pytest.approx(right, rel=1e-5), f"loss, accuracy, gradient norm of step {step}"


@pytest.mark.parametrize(("ranks", "layout"), LAYOUTS, ids=str)
def test_a_reward_model_equals_a_float64_loop(ranks, layout, request):
    for found in request.getfixturevalue(ranks).run(reward_cases.curve, layout):
        assert_same_curves(found, float64_curve())


def test_a_reward_model_with_experts_equals_a_float64_loop(two_ranks):
    for found in two_ranks.run(reward_cases.curve, dict(zero_stage=3, **PACKED), kind="mixtral"):
        assert_same_curves(found, float64_curve("mixtral"))


def test_shared_weights_change_nothing():
    with RankPool(2) as ranks:  # of their own: DeepSpeed keeps the tensor groups of a process
        for found in ranks.run(reward_cases.curve, dict(zero_stage=1, tensor_parallel_size=2, **PACKED)):
            assert_same_curves(found, float64_curve())


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (dict(lora_rank=4), dict(zero_stage=3)),
        (dict(lora_rank=4), dict(zero_stage=2, **RING)),
        (dict(kind="mixtral", aux_coef=0.1), dict(zero_stage=2, **RING)),  # whose micro-steps hold the same pairs
    ],
    ids=str,
)
def test_any_layout_trains_as_one_rank(one_rank, two_ranks, model, layout):
    (expected,) = one_rank.run(reward_cases.curve, dict(zero_stage=0), **model)
    for found in two_ranks.run(reward_cases.curve, layout, **model):
        assert_same_curves(found, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", None), ("bf16", 0.05)])
def test_adapters_and_a_new_head_train_alike_from_a_base_in_parts(one_rank, two_ranks, tmp_path, dtype, tolerance):
    tiny_model("qwen3").save_pretrained(tmp_path)
    model = dict(folder=str(tmp_path), lora_rank=4)
    (expected,) = one_rank.run(reward_cases.curve, dict(zero_stage=1, param_dtype=dtype), **model)
    for found in two_ranks.run(reward_cases.curve, dict(zero_stage=3, param_dtype=dtype), **model):
        if tolerance is None:
            assert_same_curves(found, expected)
        else:
            assert [step[0] for step in found] == pytest.approx([step[0] for step in expected], rel=tolerance)


# --- scores


def rewards(model: RewardModel, ids: list[torch.Tensor], packed: bool) -> list[float]:
    """Scores of a micro-batch of answers."""
    units = [Unit((TokenSequence(one, torch.ones_like(one)),), "") for one in ids]
    with torch.no_grad():
        return Scorer(model, make_micro_batch(units, packed), alone()).sequence_values().tolist()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "longrope", "qwen3_moe"])
def test_a_score_does_not_depend_on_its_neighbours(kind):
    """Over random batches, padded and packed."""
    draw = random.Random(3)
    ids = [torch.tensor([draw.randrange(3, 500) for _ in range(draw.randint(1, 40))]) for _ in range(24)]
    padded, packed = (RewardModel(tiny_classifier(kind), packing_samples=packed).eval() for packed in (False, True))
    expected = [rewards(padded, [one], False)[0] for one in ids]
    assert max(expected) - min(expected) > 1e-2
    for model, is_packed in ((padded, False), (packed, True)):
        for _ in range(4):
            rows = draw.sample(range(24), draw.randint(2, 12))
            found = rewards(model, [ids[row] for row in rows], is_packed)
            assert found == pytest.approx([expected[row] for row in rows], rel=0, abs=1e-6), rows


# --- evaluation


@functools.cache
def expected_evaluation() -> dict[str, float]:
    """By hand, from the rewards of transformers' own classifier."""
    pairs, model = Pairs(), tiny_classifier()
    with torch.no_grad():
        values = torch.tensor(
            [[model(input_ids=ids[None]).logits.item() for ids in pair] for pair in pairs.ids]
        ).double()
    chosen, rejected = values.T
    right = chosen > rejected
    bins: dict[int, list[float]] = {}
    for difference in (chosen - rejected).tolist():
        confidence = torch.tensor(abs(difference)).sigmoid().item()
        bins.setdefault(min(int((confidence - 0.5) * 20), 9), []).append((difference > 0) - confidence)
    is_code = torch.arange(NUM_PAIRS) % 3 == 0
    lengths = torch.tensor([[len(ids) for ids in pair] for pair in pairs.ids])
    return {
        "eval_loss": torch.nn.functional.softplus(rejected - chosen).mean().item(),
        "eval_accuracy": right.double().mean().item(),
        "eval_margin": (chosen - rejected).mean().item(),
        "eval_chosen_reward": chosen.mean().item(),
        "eval_rejected_reward": rejected.mean().item(),
        "eval_longer_is_better_accuracy": (lengths[:, 0] > lengths[:, 1]).double().mean().item(),
        "eval_calibration_error": sum(abs(sum(gaps)) for gaps in bins.values()) / NUM_PAIRS,
        "eval_reward_mean": values.mean().item(),
        "eval_reward_std": values.std(correction=0).item(),
        "eval_accuracy/chat": right[~is_code].double().mean().item(),
        "eval_accuracy/code": right[is_code].double().mean().item(),
        "eval_num_target_tokens": (lengths - 3).sum().item(),
    }


@pytest.mark.parametrize(("ranks", "layout"), [LAYOUTS[0], LAYOUTS[2], LAYOUTS[4]], ids=str)
def test_an_evaluation_tells_accuracy_calibration_subsets_and_length(ranks, layout, request):
    for found in request.getfixturevalue(ranks).run(reward_cases.evaluation, layout):
        assert found == pytest.approx(expected_evaluation(), rel=1e-5, abs=1e-7)


def sums_of(chosen: list[float], rejected: list[float]) -> dict[str, float]:
    """The means over pairs of two-token answers with these rewards, and what is derived of them."""

    class Values:
        speaks_for_sequences = 1.0

        def sequence_values(self) -> torch.Tensor:
            return torch.tensor([chosen, rejected]).T.flatten()

    answer = TokenSequence(torch.ones(2, dtype=torch.long), torch.ones(2))
    batch = make_micro_batch([Unit((answer, answer), "")] * len(chosen), True)
    objective = RewardObjective()
    share = objective.loss(Values(), batch, 1.0)
    means = {name: float(total) / count for name, (total, count) in share.sums.items()}
    return means | objective.derived(means)


FORMULAS = {  # the objective's settings → the loss of a pair, by plain numbers
    ("sigmoid", True, 0.0): lambda good, bad, margin: -math.log(1 / (1 + math.exp(-(good - bad - margin)))),
    ("logexp", False, 0.0): lambda good, bad, margin: math.log(1 + math.exp(bad - good)),
    ("logexp", False, 0.3): lambda good, bad, margin: math.log(1 + math.exp(bad - good)) + 0.3 * (good + bad) ** 2,
}


@pytest.mark.parametrize("settings", FORMULAS, ids=str)
def test_loss_and_gradients_are_those_of_the_formula(settings):
    """The weighted mean over pairs, of rewards in float64."""
    rewards, margins, weights = [[1.3, 0.4], [-0.2, 0.9], [2.5, -3.1]], [0.5, 0.0, 1.5], [1.0, 2.0, 0.5]

    def right(rewards: list[list[float]]) -> float:
        losses = [FORMULAS[settings](*pair, margin) for pair, margin in zip(rewards, margins, strict=True)]
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)

    values = torch.tensor(rewards, dtype=torch.float64).flatten().requires_grad_()
    answer = TokenSequence(torch.ones(2, dtype=torch.long), torch.ones(2))
    units = [Unit((answer, answer), "", weight, {"margin": m}) for weight, m in zip(weights, margins, strict=True)]
    scorer = SimpleNamespace(speaks_for_sequences=1.0, sequence_values=lambda: values)
    share = RewardObjective(*settings).loss(scorer, make_micro_batch(units, True), sum(weights))
    share.loss.backward()
    assert share.loss.item() == pytest.approx(right(rewards), rel=1e-12)
    total, count = share.sums["loss"]
    assert float(total / count) == pytest.approx(right(rewards), rel=1e-12), "what is recorded is what is trained"
    step = 1e-6
    for place, slope in enumerate(values.grad.tolist()):
        moved = [torch.tensor(rewards, dtype=torch.float64) for _ in range(2)]
        for one, sign in zip(moved, (1, -1), strict=True):
            one.view(-1)[place] += sign * step
        there, back = (right(one.tolist()) for one in moved)
        assert slope == pytest.approx((there - back) / (2 * step), rel=1e-6, abs=1e-8), f"slope of reward {place}"


@pytest.mark.parametrize("spoilt", [(math.nan, 1.0), (math.inf, math.inf)])
def test_a_reward_that_is_no_number_spoils_the_loss_and_nothing_else(spoilt):
    """The guard over steps looks at the loss, and names the pair."""
    found = sums_of([2.0, spoilt[0], 3.0], [1.0, spoilt[1], 1.0])
    assert math.isnan(found["loss"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert math.isfinite(sums_of([math.inf, 2.0], [1.0, 1.0])["calibration_error"])


def test_equal_rewards_are_no_success():
    assert sums_of([1.0, 2.0], [1.0, 1.0])["accuracy"] == 0.5


def test_calibration_of_one_bin_does_not_make_up_for_anothers():
    """Five sure pairs of which one is wrong, five unsure ones that are right."""
    found = sums_of([4.0] * 4 + [0.0] + [0.1] * 5, [0.0] * 4 + [4.0] + [0.0] * 5)["calibration_error"]
    sure, unsure = torch.tensor([4.0, 0.1]).double().sigmoid().tolist()
    assert found == pytest.approx(abs(4 - 5 * sure) / 10 + abs(5 - 5 * unsure) / 10, rel=1e-6)
