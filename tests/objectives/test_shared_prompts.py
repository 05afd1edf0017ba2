"""A prompt that two answers share is computed once in a pack, and nothing else changes."""

from __future__ import annotations

import functools
from unittest.mock import patch

import pytest
import torch

from openrlhf.batching import TokenSequence, Unit
from openrlhf.batching.micro_batch import LEAST_SHARED_TOKENS, make_micro_batch
from openrlhf.config import RMConfig
from openrlhf.config.schema import build
from openrlhf.errors import UserError
from openrlhf.models import Actor, RewardModel
from openrlhf.models.attention.ring import _Exchange, num_exchanges_begun
from openrlhf.models.attention.ring_plan import make_ring
from openrlhf.models.cpu_kernels import attention as cpu_attention
from openrlhf.objectives import Scorer
from openrlhf.parallel.groups import alone
from openrlhf.run import pair_run
from openrlhf.run.rm_run import RMRun
from openrlhf.run.training_run import TrainingRun
from tests.helpers.tiny_models import tiny_model
from tests.objectives import pair_cases
from tests.objectives.pair_cases import LongPrompts
from tests.objectives.reward_cases import tiny_classifier


@functools.cache
def curve_without_sharing(kind: str) -> list[tuple[float, float, float]]:
    """Padded, on one rank; `test_pairs.py` holds such curves to a float64 loop."""
    return pair_cases.curve(ring=1, zero_stage=0, packed=False, shares_prompts=False, kind=kind)


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        ("one_rank", dict(ring=1, zero_stage=0)),
        ("one_rank", dict(ring=1, zero_stage=2, max_tokens=150)),
        ("one_rank", dict(ring=1, zero_stage=0, recomputes=True)),
        ("two_ranks", dict(ring=1, zero_stage=3)),
        ("two_ranks", dict(ring=1, zero_stage=3, recomputes=True, max_tokens=150)),
        ("two_ranks", dict(ring=2, zero_stage=2)),
        ("two_ranks", dict(ring=2, zero_stage=3, max_tokens=80, recomputes=True)),
        ("one_rank", dict(ring=1, zero_stage=0, kind="gpt_oss")),
        ("two_ranks", dict(ring=2, zero_stage=1, kind="gemma2")),
    ],
    ids=str,
)
def test_a_curve_with_shared_prompts_is_the_one_without(ranks, layout, request):
    kind = layout.get("kind", "llama")
    (right,) = request.getfixturevalue("one_rank").run(curve_without_sharing, kind)
    for found in request.getfixturevalue(ranks).run(pair_cases.curve, packed=True, shares_prompts=True, **layout):
        for step, (one, same) in enumerate(zip(found, right, strict=True)):
            assert one == pytest.approx(same, rel=1e-5), f"loss, accuracy, gradient norm of step {step}"


def test_a_pack_holds_a_shared_prompt_once_and_short_ones_twice():
    pairs = LongPrompts()
    units = [pairs.unit(row) for row in (0, 4, 9)]
    batch = make_micro_batch(units, packed=True, shares_prompts=True)
    first, _, last = (unit.sequences for unit in units)
    assert (pairs.ids[0][0][: LEAST_SHARED_TOKENS - 1] == pairs.ids[0][1][: LEAST_SHARED_TOKENS - 1]).all()
    assert batch.prompt_of == (None, None, None, 2, 2, None, 5, 5)
    assert batch.cu_seqlens is not None
    assert batch.cu_seqlens.diff()[:2].tolist() == [len(sequence.input_ids) for sequence in first]
    assert batch.cu_seqlens.diff()[-1] == 1  # the shorter answer is all in the longer one: it keeps one token
    assert batch.num_tokens == sum(len(sequence.input_ids) for unit in units for sequence in unit.sequences)
    assert batch.input_ids.shape[1] == batch.num_tokens - sum(batch.cu_seqlens.diff()[[2, 5]]).item()
    ends = [sequence.input_ids[-1].item() for unit in units for sequence in unit.sequences]
    assert batch.input_ids[0, batch.last_index].tolist() == ends
    targets = [ids for unit in units for one in unit.sequences for ids in one.input_ids[1:][one.loss_mask[:-1] > 0]]
    assert batch.target_ids.tolist() == [int(token) for token in targets]
    assert batch.position_ids[0, batch.last_index].tolist() == [
        len(one.input_ids) - 1 for u in units for one in u.sequences
    ]
    assert len(last[1].input_ids) < len(last[0].input_ids)


@pytest.mark.parametrize("by", ["our kernel", "blocks that are merged"])
def test_values_of_a_reward_model_are_those_without_sharing(by, monkeypatch):
    if by == "blocks that are merged":
        monkeypatch.setattr(cpu_attention, "_kernels", lambda dtype: None)
    units = [LongPrompts().unit(row) for row in range(10)]
    with torch.no_grad():
        with_, without = (
            Scorer(
                RewardModel(tiny_classifier(), "ring", packing_samples=True).eval(),
                make_micro_batch(units, packed=True, shares_prompts=shares),
                alone(),
            ).sequence_values()
            for shares in (True, False)
        )
    torch.testing.assert_close(with_, without, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 0.02), (torch.float32, 1e-6)])
def test_on_the_cpu_our_kernel_computes_shared_prompts(dtype, rounding):
    """All samples together; to rounding what it computes without sharing."""
    model = RewardModel(tiny_classifier().to(dtype), "ring", packing_samples=True).eval()
    units = [LongPrompts().unit(row) for row in range(10)]
    with torch.no_grad(), patch.object(cpu_attention, "forward", wraps=cpu_attention.forward) as kernel:
        with_, without = (
            Scorer(model, make_micro_batch(units, True, shares_prompts=shares), alone()).sequence_values()
            for shares in (True, False)
        )
    sharing = [call for call in kernel.call_args_list if call.args[-1] is not None]
    assert len(sharing) >= model.config.num_hidden_layers
    assert (with_ - without).norm() < rounding * without.norm()


def test_an_attention_without_a_plan_is_refused_and_not_trained_wrong():
    unit = LongPrompts().unit(5)
    batch = make_micro_batch([unit], packed=True, shares_prompts=True)
    actor = Actor(tiny_model("llama"), "per_sample", packing_samples=True)
    with pytest.raises(
        UserError, match="cannot compute a prompt once for two answers .* Give --ds.share_prompts false"
    ):
        Scorer(actor, batch, alone()).log_probs()


def test_sequences_of_which_one_begins_the_other():
    ids = torch.arange(3, 30)
    unit = Unit(tuple(TokenSequence(one, torch.ones(len(one))) for one in (ids, ids[:-1], ids)), "")
    batch = make_micro_batch([unit], packed=True, shares_prompts=True)
    assert batch.prompt_of == (None, 0, 0, 0)
    assert batch.cu_seqlens is not None
    assert batch.cu_seqlens.diff().tolist() == [25, 2, 1, 2]


def test_whether_prompts_are_shared_is_asked_again_with_another_layout(monkeypatch):
    """A model that mixes its packs is padded, and in padded batches no prompt is shared."""
    run, packs = object.__new__(RMRun), iter([True, False])

    def choose_layout(run):
        run.config = build(RMConfig, {"ds.packing_samples": next(packs)})

    monkeypatch.setattr(TrainingRun, "choose_layout", choose_layout)
    monkeypatch.setattr(pair_run, "load_config", lambda name, trust: tiny_model("llama").config)
    run.train_data, shared = LongPrompts(), []
    for _ in range(2):
        run.choose_layout()
        shared.append(run.shared_prompts.are_on)
    assert shared == [True, False]


def test_what_is_sent_to_nobody_is_no_exchange():
    begun = num_exchanges_begun()
    here = torch.ones(2, 3, 1, 4)
    assert _Exchange(make_ring(None, torch.tensor([0, 3]), 0, torch.device("cpu")), here, 0).wait() is here
    assert num_exchanges_begun() == begun, "memory that runs out here is taken for that of a rank amid collectives"
