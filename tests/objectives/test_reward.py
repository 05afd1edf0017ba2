"""Reward models: the same in every layout, equal to transformers' own classifier in a float64 loop."""

from __future__ import annotations

import functools

import pytest
import torch

from openrlhf.batching import TokenSequence, Unit
from openrlhf.batching.micro_batch import make_micro_batch
from openrlhf.errors import UserError
from openrlhf.models import RewardModel
from openrlhf.objectives import Scorer
from openrlhf.parallel.groups import alone
from tests.helpers.tiny_models import tiny_model
from tests.objectives import reward_cases
from tests.objectives.pair_cases import BATCH_SIZE, NUM_PAIRS, NUM_STEPS, Pairs
from tests.objectives.reward_cases import CENTER_COEF, tiny_classifier


@functools.cache
def float64_curve() -> list[tuple[float, float, float]]:
    """One answer at a time by transformers' own classifier."""
    pairs, model = Pairs(), tiny_classifier(dtype=torch.float64)
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


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        ("one_rank", dict(ring=1, zero_stage=0, packed=False)),
        ("one_rank", dict(ring=1, zero_stage=2, packed=True, max_tokens=120)),
        ("two_ranks", dict(ring=1, zero_stage=3, packed=True)),
        ("two_ranks", dict(ring=1, zero_stage=1, packed=False, max_tokens=130)),
        ("two_ranks", dict(ring=2, zero_stage=2, packed=True)),
        ("two_ranks", dict(ring=2, zero_stage=3, packed=True, max_tokens=60)),
    ],
    ids=str,
)
def test_a_reward_model_equals_a_float64_loop(ranks, layout, request):
    for found in request.getfixturevalue(ranks).run(reward_cases.curve, **layout):
        for step, (one, right) in enumerate(zip(found, float64_curve(), strict=True)):
            assert one == pytest.approx(right, rel=1e-5), f"loss, accuracy, gradient norm of step {step}"


def rewards(ids: list[torch.Tensor], packed: bool, size: int) -> torch.Tensor:
    """Scores of the answers, so many a micro-batch."""
    model = RewardModel(tiny_classifier(), packing_samples=packed).eval()
    scores = []
    for start in range(0, len(ids), size):
        units = [Unit((TokenSequence(one, torch.ones_like(one)),), "") for one in ids[start : start + size]]
        batch = make_micro_batch(units, packed, pad_token_id=0)
        with torch.no_grad():
            scores.append(Scorer(model, batch, alone()).sequence_values())
    return torch.cat(scores)


def test_a_score_does_not_depend_on_its_neighbours():
    ids = [answer for pair in Pairs().ids for answer in pair]
    alone_ = rewards(ids, packed=False, size=1)
    assert alone_.std() > 1e-3
    for packed, size in ((False, 7), (True, 7), (True, len(ids)), (False, len(ids))):
        torch.testing.assert_close(rewards(ids, packed, size), alone_, rtol=0, atol=1e-6)


def test_adapters_and_the_whole_head_are_trained():
    model = RewardModel(tiny_classifier(), lora_rank=4)
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    assert any("score" in name for name in trained)
    assert all("lora_" in name or "score" in name for name in trained)


def test_the_head_of_a_base_model_starts_by_its_seed(tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path)
    one, same, other = (
        RewardModel(str(tmp_path), param_dtype="fp32", head_seed=seed).model.score.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0 < one.std() < 0.1


def test_a_reward_model_that_is_there_keeps_its_head(tmp_path):
    model = tiny_classifier()
    model.save_pretrained(tmp_path)
    assert torch.equal(RewardModel(str(tmp_path), param_dtype="fp32").model.score.weight, model.score.weight)


def test_a_model_without_a_classifier_is_refused_by_name(tmp_path):
    tiny_model("granite").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a granite model, of which transformers has no classifier"):
        RewardModel(str(tmp_path))
