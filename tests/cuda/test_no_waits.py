"""A micro-batch on a GPU: nothing on its way mixes devices, and nowhere the host waits for the device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from openrlhf.batching import make_micro_batch
from openrlhf.batching.unit import TokenSequence, Unit
from openrlhf.models import Actor, RewardModel, rope
from openrlhf.models.attention import ring, ring_plan
from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.objectives import Scorer, objective_named
from openrlhf.objectives.preference import PreferenceObjective
from openrlhf.objectives.reference import ComputedReference
from openrlhf.objectives.reward import RewardObjective
from openrlhf.objectives.scorer import WindowScores
from openrlhf.parallel.groups import alone
from openrlhf.trainer.metrics import MetricSums
from tests.cuda.fake_cuda import CUDA, HostWaitsError, fake_cuda, move_parameters
from tests.helpers.tiny_models import tiny_model

LENGTHS = (13, 1, 30, 2, 7)
RING_RANK, RING_SIZE = 1, 4
GROUP_OF_RING: Any = object()  # is asked of a stand-in alone
PREFERENCES = PreferenceObjective({"sigmoid": 1.0, "simpo": 0.5}, nll_coef=0.3, reference=ComputedReference())
OPTIONS = {
    "plain": dict(),
    "window": dict(window=5),
    "soft cap": dict(softcap=5.0),
}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.zeros(3).to(CUDA, non_blocking=True),
        lambda x: torch.zeros(3).pin_memory().to(CUDA),
        lambda x: torch.tensor([1.0], device=x.device),
    ],
    ids=["item", "tolist", "cpu", "nonzero", "mask", "repeat", "pageable", "blocking", "numbers"],
)
def test_a_wait_is_seen(wait):
    with fake_cuda(), pytest.raises(HostWaitsError):
        wait(torch.zeros(3, device=CUDA))


def test_mixed_devices_are_seen():
    with fake_cuda(), pytest.raises(Exception, match="cuda:0 and cpu"):
        torch.zeros(3, device=CUDA) + torch.zeros(3)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("loss", ["nll", "dft"])
@pytest.mark.parametrize(("kind", "dtype"), [("qwen3", torch.bfloat16), ("gemma2", torch.float32)])
def test_a_micro_batch(kind, dtype, loss, packed):
    actor = _actor(kind, dtype, packed)
    micro_batch = _micro_batch(packed)
    objective = objective_named(loss)
    divisor = objective.weight(micro_batch)
    with fake_cuda():
        move_parameters(actor)
        sums = MetricSums(objective, CUDA, with_entropy=True)
        scorer = Scorer(actor, micro_batch.to(CUDA), alone(), with_entropy=True)
        share = objective.loss(scorer, scorer.batch, divisor)
        sums.add_share(share, scorer)
        assert share.loss.device == sums.pairs.device == CUDA


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("objective", [PREFERENCES, RewardObjective()], ids=["preferences", "rewards"])
def test_a_micro_batch_of_pairs(monkeypatch, tmp_path, objective, packed):
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, of: (torch.zeros_like(of),))
    if objective is PREFERENCES:
        model: Any = _actor("qwen3", torch.bfloat16, packed)
    else:
        tiny_model("qwen3", torch.bfloat16).save_pretrained(tmp_path)
        model = RewardModel(str(tmp_path), begin_head=True, packing_samples=packed)
        if packed:
            model.model.set_attn_implementation("torch_varlen")
    rows = [TokenSequence(torch.arange(3, 3 + length), torch.ones(length)) for length in LENGTHS[2:4]]
    numbers = dict(reference_chosen=-1.0, reference_rejected=-2.0)
    pairs = make_micro_batch([Unit(tuple(rows), "row", 2.0, numbers)], packed)
    window = WindowScores(tuple(objective.window_sums(pairs))) if objective.needs_window_sums else WindowScores()
    with fake_cuda():
        move_parameters(model)
        scorer = Scorer(model.train(), pairs.to(CUDA), alone(), window=window)
        share = objective.loss(scorer, scorer.batch, 2.0)
        assert share.loss.device == CUDA


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_attention_of_a_ring(monkeypatch, dtype, options):
    monkeypatch.setattr(ring, "_Exchange", _Exchange)
    monkeypatch.setattr(ring_plan.dist, "get_rank", lambda group: RING_RANK)
    monkeypatch.setattr(ring_plan.dist, "get_world_size", lambda group: RING_SIZE)
    asked = AttentionOptions(0.3, **OPTIONS[options])
    borders = torch.tensor((0, *LENGTHS), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    with fake_cuda():
        plan = ring_plan.make_ring(GROUP_OF_RING, borders, 0, CUDA)
        num_tokens = plan.num_tokens[RING_RANK]
        query, grad = (torch.empty(num_tokens, 4, 16, dtype=dtype, device=CUDA) for _ in range(2))
        key, value = (torch.empty(num_tokens, 2, 16, dtype=dtype, device=CUDA) for _ in range(2))
        sinks = torch.empty(4, dtype=dtype, device=CUDA)
        ctx = _Context()
        output = ring._RingAttention.forward(ctx, query, key, value, sinks, asked, plan)
        grads = ring._RingAttention.backward(ctx, grad)
    assert output.shape == query.shape
    assert [one.shape for one in grads[:4]] == [query.shape, key.shape, value.shape, sinks.shape]


@pytest.mark.parametrize("in_ring", [False, True], ids=["pack", "ring"])
def test_rotary_embeddings_by_length(monkeypatch, in_ring):
    monkeypatch.setattr(rope, "_by_length", lambda module, hidden, positions, length, others: (hidden, hidden))
    monkeypatch.setattr(ring_plan.dist, "get_rank", lambda group: RING_RANK)
    monkeypatch.setattr(ring_plan.dist, "get_world_size", lambda group: RING_SIZE)
    model = tiny_model("longrope")
    by_length = rope.RopeByLength(model)
    borders = torch.tensor((0, *LENGTHS), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    with fake_cuda():
        told = ring_plan.borders_of_samples(borders, max(LENGTHS), GROUP_OF_RING if in_ring else None, 0, CUDA)
        num_tokens = told["ring"].num_tokens[RING_RANK] if in_ring else sum(LENGTHS)
        positions, hidden = (torch.empty(1, num_tokens, *more, device=CUDA) for more in ((), (8,)))
        by_length.look_at(dict(input_ids=positions, **told))
        cos, _ = by_length._correct(model.model.rotary_emb, (hidden, positions), {}, (hidden, hidden))
    assert cos.shape == hidden.shape


class _Context(SimpleNamespace):
    """Takes the place of autograd's."""

    needs_input_grad = (True,) * 6

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


class _Exchange:
    """What comes from the rank before, as a shape."""

    def __init__(self, plan: ring_plan.Ring, tensor: Tensor, source: int):
        num_arriving = plan.num_tokens[(source - 1) % plan.size]
        self._received = tensor.new_empty(tensor.shape[0], num_arriving, *tensor.shape[2:])

    def wait(self) -> Tensor:
        return self._received


def _actor(kind: str, dtype: torch.dtype, packed: bool) -> Actor:
    actor = Actor(tiny_model(kind, dtype), packing_samples=packed)
    actor.check_layout(packed, None)  # the probe reads numbers, once before training
    if packed:
        actor.model.set_attn_implementation("torch_varlen")
    return actor.train()


def _micro_batch(packed: bool) -> Any:
    rows = [TokenSequence(torch.arange(3, 3 + length), torch.ones(length)) for length in LENGTHS]
    return make_micro_batch([Unit((row,), "row") for row in rows], packed)
