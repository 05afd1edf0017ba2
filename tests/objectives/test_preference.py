"""Preferences: the same in every layout, equal to a float64 loop, and alike by every kind of reference."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from openrlhf.errors import UserError
from openrlhf.objectives.pair_losses import LOSSES, PairLogProbs, PairLossSettings, WindowFacts
from openrlhf.objectives.preference import PreferenceObjective
from openrlhf.objectives.sorted_window import SortedComparisons
from tests.helpers.slow import slow
from tests.helpers.tiny_models import tiny_model
from tests.objectives import preference_cases
from tests.objectives.pair_cases import BATCH_SIZE, LAYOUTS, NUM_PAIRS, NUM_STEPS, log_prob_of_answer
from tests.objectives.preference_cases import MIX, SETTINGS, WeightedPairs


def comparisons(policy: list[float], reference: list[float], weights: list[float]) -> SortedComparisons:
    """Both sorted, by piles: the lower ends meet first, and the smaller of two piles is used up."""
    ours, theirs = (sorted(range(len(values)), key=values.__getitem__) for values in (policy, reference))
    left, left_of_reference, found = list(weights), list(weights), []
    while ours and theirs:
        one, other = ours[0], theirs[0]
        taken = min(left[one], left_of_reference[other])
        found.append((one, reference[other], taken / weights[one]))
        for pile, rest, place in ((ours, left, one), (theirs, left_of_reference, other)):
            rest[place] -= taken
            if rest[place] < 1e-12:
                pile.pop(0)
    pair, beside, share = zip(*found, strict=True)
    return SortedComparisons(torch.tensor(pair), *(torch.tensor(x, dtype=torch.float64) for x in (beside, share)))


@functools.cache
def float64_curve() -> list[tuple[float, float, float]]:
    """A pair at a time through the model, then the window's losses by their formulas; plain torch."""
    data, model = WeightedPairs(), tiny_model("llama", torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0)
    results, order = [], list(range(NUM_PAIRS)) * 2
    for start in [0, 4, 8, 10, 14][:NUM_STEPS]:
        rows = order[start : min(start + BATCH_SIZE, NUM_PAIRS * (1 + start // NUM_PAIRS))]
        w, l = (torch.stack([log_prob_of_answer(model, data.ids[row][side]) for row in rows]) for side in (0, 1))  # noqa: E741
        ref_w, ref_l = torch.tensor([data.references[row] for row in rows], dtype=torch.float64).unbind(1)
        n_w, n_l = torch.tensor([[len(ids) - 3 for ids in data.ids[row]] for row in rows]).unbind(1)
        weights = torch.tensor([data.weights[row] for row in rows], dtype=torch.float64)
        weights_over_one = weights / weights.sum()
        beside = comparisons((w - l).tolist(), (ref_w - ref_l).tolist(), weights.tolist())
        shift = (SETTINGS.beta * (w - ref_w + l - ref_l).detach() / 2 * weights_over_one).sum().item()
        facts = WindowFacts((n_w * weights_over_one).sum().item(), shift, beside)
        pairs = PairLogProbs(w, l, ref_w, ref_l, n_w, n_l, facts)
        losses = sum(weight * LOSSES[name](pairs, SETTINGS) for name, weight in MIX.items())
        optimizer.zero_grad()
        loss = (losses * weights_over_one).sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        margin = (SETTINGS.beta * pairs.difference).mean().item()
        results.append((loss.item(), margin, norm.item()))
    return results


@pytest.mark.parametrize(("ranks", "layout"), LAYOUTS, ids=str)
def test_a_mix_of_losses_equals_a_float64_loop(ranks, layout, request):
    for found in request.getfixturevalue(ranks).run(preference_cases.curve, **layout):
        for step, (one, right) in enumerate(zip(found, float64_curve(), strict=True)):
            assert one == pytest.approx(right, rel=1e-5, abs=1e-6), f"loss, margin, gradient norm of step {step}"


@pytest.mark.parametrize(("ring", "zero_stage"), [(1, 2), *slow([(1, 3)]), (2, 2)], ids=str)
def test_three_kinds_of_reference_are_one(ring, zero_stage, two_ranks, tmp_path):
    layout = dict(ring=ring, zero_stage=zero_stage, folder=str(tmp_path))
    off, *others = (
        two_ranks.run(preference_cases.curve_of_adapters, kind=kind, **layout)[0]
        for kind in ("off", "frozen", "computed")
    )
    assert off[0][0] == pytest.approx(math.log(2), abs=1e-7)  # adapters begin as nothing
    assert off[-1][0] != pytest.approx(math.log(2), abs=1e-4)
    for kind, other in zip(("frozen", "computed"), others, strict=True):
        for step, (one, same) in enumerate(zip(off, other, strict=True)):
            assert one == pytest.approx(same, rel=1e-6, abs=1e-6), f"{kind}: loss, margin, gradient norm of {step}"


@pytest.mark.parametrize(("zero_stage", "short"), [(2, (1,)), *slow([(3, (0, 1))])])
@pytest.mark.parametrize("kind", ["off", "frozen", "computed"])
def test_a_reference_for_which_memory_runs_out_is_computed_again(kind, zero_stage, short, two_ranks, tmp_path):
    layout = dict(ring=1, zero_stage=zero_stage, max_tokens=130, dropout=0.0)  # it is drawn by micro-batch
    right = two_ranks.run(preference_cases.curve_of_adapters, kind="off", **layout)[0]
    found = two_ranks.run(preference_cases.curve_of_adapters, kind=kind, short=short, folder=str(tmp_path), **layout)[0]
    for step, (one, same) in enumerate(zip(right, found, strict=True)):
        assert one == pytest.approx(same, rel=1e-6, abs=1e-6), f"loss, margin, gradient norm of step {step}"


@pytest.mark.parametrize(
    ("num_bytes", "damaged_row"), [(0, None), (24 * 4, None), (24 * 6 + 3, None), (24 * 10, None), (24 * 10, 5)]
)
def test_a_reference_goes_on_after_a_kill_at_any_byte(num_bytes, damaged_row, two_ranks, tmp_path):
    """Behind what is whole: row 0 is marked, and not asked for again; a damaged row is, and it is told."""
    case = dict(folder=str(tmp_path), num_bytes=num_bytes, damaged_row=damaged_row)
    whole, again, said = two_ranks.run(preference_cases.reference_after_a_kill, **case)[0]
    assert whole.shape == (NUM_PAIRS, 2)
    assert num_bytes == 0 or again[0].tolist() == [7.0, 7.0]
    assert (again[1:] == whole[1:]).all()
    assert ["computed anew from row 6 on" in line for line in said] == [True] * (damaged_row is not None)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.f64"], "what the killed run has left is gone"


@pytest.mark.parametrize("what", ["folder removed", "journal spoilt", "file of another run", "disk full"])
def test_a_reference_is_what_was_computed_whatever_happens_on_disk(what, one_rank, tmp_path):
    """Also in the next run; where another run was done before, both train with its numbers."""
    first, second, whole, said = one_rank.run(preference_cases.reference_beside, str(tmp_path / "of" / "it"), what)[0]
    if what == "disk full":
        assert "cannot be kept in" in first
        assert "No space left on device" in first
    else:
        assert (first == second).all()
    assert (second == (7.0 if what == "file of another run" else whole)).all()
    assert ["Another run" in line for line in said] == [True] * (what == "file of another run")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"sigmoyd": 1.0}, "The loss sigmoyd is none of sigmoid, "),
        ({}, "names one loss at least"),
        ({"robust": 1.0}, "The loss robust needs a label_smoothing below 0.5"),
        ({"simpo": 1.0, "ipo": 1.0}, "The loss ipo needs a reference model"),
    ],
)
def test_a_mix_that_cannot_be_is_told(losses, said):
    with pytest.raises(UserError, match=said):
        PreferenceObjective(losses, PairLossSettings(label_smoothing=0.5))
