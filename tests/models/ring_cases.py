"""What the ranks run for tests/models/test_ring.py."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from openrlhf.models import Actor
from openrlhf.models.attention import ring, ring_kernels
from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.models.attention.per_sample import CausalMask
from openrlhf.models.attention.ring import ring_attention
from openrlhf.models.attention.ring_plan import make_ring
from openrlhf.parallel.sequence_shares import sequence_share
from tests.cuda.varlen_on_cpu import varlen_on_cpu
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import make_samples

NUM_QUERY_HEADS, NUM_KEY_HEADS, HEAD_SIZE = 6, 3, 16


# Whether torch's kernel for CUDA computes the blocks, and options of `attention_errors`.
OF_CUDA: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (True, {}),
    "some heads at a time": (True, dict(head_stride=1)),
    "sinks": (True, dict(with_sinks=True)),
    "heads of size 8": (True, dict(head_size=8)),
    "heads of size 20": (False, dict(head_size=20)),
    "heads of size 264": (False, dict(head_size=264)),
    "a window": (False, dict(window=5)),
    "a soft cap": (False, dict(softcap=1.5)),
    "float32": (False, dict(dtype=torch.float32)),
}


def errors_of_cuda_kernels(lengths: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, **options: Any) -> dict:
    """`attention_errors` with the kernels that are chosen on CUDA; `calls`: those of torch's own that were called."""

    def not_that_of_the_cpu(query: Tensor, options: AttentionOptions) -> ring_kernels.BlockKernel:
        return ring_kernels.choose_kernel(query.to("meta"), options)

    with varlen_on_cpu() as calls, mock.patch.object(ring, "choose_kernel", not_that_of_the_cpu):
        return {**attention_errors(lengths, dtype, **options), "calls": calls}


def attention_errors(
    lengths: tuple[int, ...],
    dtype: torch.dtype,
    window: int | None = None,
    softcap: float | None = None,
    with_sinks: bool = False,
    head_stride: int = 0,
    head_size: int = HEAD_SIZE,
    device: str = "cpu",
    largest_tile: int = ring_kernels.LARGEST_TILE,
) -> dict[str, float]:
    """Largest errors of output and gradients on this rank's share, against whole attention in float64."""
    whole = _random_inputs(sum(lengths), dtype, with_sinks, head_size)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    mine = sequence_share(cu_seqlens, dist.get_rank(), dist.get_world_size())
    plan = make_ring(dist.group.WORLD, cu_seqlens, head_stride, torch.device(device))
    num_rows = max(len(mine), 1)

    own = {name: _share(tensor, name, mine, num_rows).to(device).requires_grad_() for name, tensor in whole.items()}
    grad = own.pop("grad").detach()
    query, key, value = (own[name].transpose(0, 1)[None] for name in ("query", "key", "value"))
    scaling = 1.2 * head_size**-0.5
    options = dict(scaling=scaling, softcap=softcap, s_aux=own.get("sinks"))
    mask = CausalMask(window, has_several_samples=True)
    with mock.patch.object(ring_kernels, "LARGEST_TILE", largest_tile):
        output, _ = ring_attention(None, query, key, value, mask, ring=plan, **options)
        output[0].backward(grad)

    expected = _whole_attention(whole, lengths, AttentionOptions(scaling, 0.0, window, softcap))
    errors = {"output": _error(output[0][: len(mine)], expected.pop("output")[mine])}
    for name, tensor in own.items():
        if name == "sinks":
            total = tensor.grad.double()
            dist.all_reduce(total)
            errors[name] = _error(total, expected[name])
        else:
            errors[name] = _error(tensor.grad[: len(mine)], expected[name][mine])
    return errors


def actor_scores(kind: str, lengths: tuple[int, ...], checkpointing: bool = False, **actor_options: Any) -> dict:
    """This rank's log-probs with the places of their targets, and the gradients summed over the ranks."""
    samples = make_samples(lengths)
    actor = Actor(
        tiny_model(kind, torch.float64),
        packing_samples=True,
        ring_attn_size=dist.get_world_size(),
        **actor_options,
    )
    if checkpointing:
        actor.gradient_checkpointing_enable()
        actor.train()
    inputs, places = share_inputs(samples.packed())
    scores = actor.score_targets(**inputs, sequence_group=dist.group.WORLD)
    scores.log_probs.sum().backward()
    gradients = {name: parameter.grad for name, parameter in actor.model.named_parameters()}
    for gradient in gradients.values():
        dist.all_reduce(gradient)
    return dict(places=places, log_probs=scores.log_probs.detach(), gradients=gradients)


def aux_loss(kind: str, lengths: tuple[int, ...]) -> tuple[float, Tensor]:
    """The ranks' shares of the auxiliary loss, summed, and the summed gradient of the first router."""
    actor = Actor(tiny_model(kind), packing_samples=True, ring_attn_size=dist.get_world_size())
    inputs, _ = share_inputs(make_samples(lengths).packed())
    groups = dict(sequence_group=dist.group.WORLD, router_group=dist.group.WORLD)
    scores = actor.score_targets(**inputs, **groups, with_aux_loss=True)
    scores.aux_loss.backward()
    total, gradient = scores.aux_loss.detach(), router_weight(actor).grad
    dist.all_reduce(total)
    dist.all_reduce(gradient)
    return total.item(), gradient


def router_weight(actor: Actor) -> Tensor:
    return next(p for name, p in actor.model.named_parameters() if name.endswith("gate.weight"))


def share_inputs(inputs: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    mine = sequence_share(inputs["cu_seqlens"], dist.get_rank(), dist.get_world_size())
    is_mine = torch.isin(inputs["target_index"], mine)
    places = inputs["target_index"][is_mine]
    own = dict(
        input_ids=inputs["input_ids"][:, mine],
        position_ids=inputs["position_ids"][:, mine],
        target_index=torch.searchsorted(mine, places),
        target_ids=inputs["target_ids"][is_mine],
    )
    return {**inputs, **own}, places


def _random_inputs(num_tokens: int, dtype: torch.dtype, with_sinks: bool, head_size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = dict(
        query=normal(num_tokens, NUM_QUERY_HEADS, head_size),
        key=normal(num_tokens, NUM_KEY_HEADS, head_size),
        value=normal(num_tokens, NUM_KEY_HEADS, head_size),
        grad=normal(num_tokens, NUM_QUERY_HEADS, head_size),
    )
    return {**inputs, "sinks": normal(NUM_QUERY_HEADS)} if with_sinks else inputs


def _share(tensor: Tensor, name: str, mine: Tensor, num_rows: int) -> Tensor:
    if name == "sinks":
        return tensor.clone()
    share = tensor.new_zeros(num_rows, *tensor.shape[1:])
    share[: len(mine)] = tensor[mine]
    return share


def _whole_attention(whole: dict[str, Tensor], lengths: tuple[int, ...], options: AttentionOptions) -> dict:
    """Output and gradients, written out in float64 for the whole pack."""
    inputs = {name: tensor.double().requires_grad_() for name, tensor in whole.items()}
    grad = inputs.pop("grad").detach()
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(len(sample))[:, None] - torch.arange(len(sample))[None, :]
    is_seen = (sample[:, None] == sample[None, :]) & (distance >= 0) & (distance < (options.window or torch.inf))
    outputs = []
    for head in range(NUM_QUERY_HEADS):
        key_head = head * NUM_KEY_HEADS // NUM_QUERY_HEADS
        scores = inputs["query"][:, head] @ inputs["key"][:, key_head].T * options.scaling
        if options.softcap is not None:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        weights = scores.masked_fill(~is_seen, -torch.inf).exp()
        total = weights.sum(-1, keepdim=True)
        if "sinks" in inputs:
            total = total + inputs["sinks"][head].exp()
        outputs.append(weights / total @ inputs["value"][:, key_head])
    output = torch.stack(outputs, dim=1)
    output.backward(grad)
    return {"output": output.detach(), **{name: tensor.grad for name, tensor in inputs.items()}}


def _error(found: Tensor, expected: Tensor) -> float:
    return (found.detach().double().cpu() - expected).abs().max().item() if found.numel() else 0.0
