"""Units of two sequences: an objective over pairs is the same in every layout, and equals a float64 loop."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.helpers.tiny_models import tiny_model
from tests.objectives import pair_cases
from tests.objectives.pair_cases import BATCH_SIZE, BETA, LAYOUTS, NUM_PAIRS, NUM_STEPS, Pairs, log_prob_of_answer


@functools.cache
def float64_curve() -> list[tuple[float, float, float]]:
    """One pair at a time, plain torch."""
    pairs, model = Pairs(), tiny_model("llama", torch.float64)
    decayed = list(model.parameters())
    optimizer = torch.optim.AdamW(decayed, lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0)
    results, order = [], list(range(NUM_PAIRS)) * 2
    starts = [0, 4, 8, 10, 14]
    for start in starts[:NUM_STEPS]:
        end = min(start + BATCH_SIZE, NUM_PAIRS * (1 + start // NUM_PAIRS))
        losses, hits = [], 0
        for row in order[start:end]:
            better, worse = (log_prob_of_answer(model, ids) for ids in pairs.ids[row])
            losses.append(-torch.nn.functional.logsigmoid(BETA * (better - worse) - pairs.margins[row]))
            hits += int(better > worse)
        optimizer.zero_grad()
        loss = torch.stack(losses).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        results.append((loss.item(), hits / len(losses), norm.item()))
    return results


@pytest.mark.parametrize(("ranks", "layout"), LAYOUTS, ids=str)
def test_a_pair_objective_equals_a_float64_loop(ranks, layout, request):
    for found in request.getfixturevalue(ranks).run(pair_cases.curve, **layout):
        for step, (one, right) in enumerate(zip(found, float64_curve(), strict=True)):
            assert one == pytest.approx(right, rel=1e-5), f"loss, accuracy, gradient norm of step {step}"
