"""Causal attention of a pack on the CPU: values and gradients of a loop in float64, and no other sample is seen."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models.attention import causal_pack, dense
from openrlhf.models.attention.options import AttentionOptions

NUM_HEADS, NUM_KEY_HEADS, HEAD_SIZE = 6, 2, 16
LENGTHS = [1, 63, 64, 65, 130, 200]


def draw(lengths, dtype, spread=1.0):
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, sum(lengths), HEAD_SIZE) for heads in (NUM_HEADS, NUM_KEY_HEADS, NUM_KEY_HEADS)]
    parts = [(spread * torch.randn(shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes]
    return parts, torch.randn(sum(lengths), NUM_HEADS, HEAD_SIZE, generator=generator).to(dtype)


def by_samples(query, key, value, lengths, scaling):
    """The slow way, by torch's own attention, one sample at a time."""
    samples = zip(*(part[None].split(lengths, 2) for part in (query, key, value)), strict=True)
    outputs = [dense.attend_causally(*sample, AttentionOptions(scaling)) for sample in samples]
    return torch.cat(outputs, 2)[0].transpose(0, 1)


def errors(found, grads, parts, grad, lengths, scaling=None):
    """Of the output and the three gradients, relative to the norm of what float64 gives."""
    exact = [part.detach().double().requires_grad_() for part in parts]
    output = by_samples(*exact, lengths, scaling)
    meant = [output.detach(), *torch.autograd.grad(output, exact, grad.double())]
    found = [found.detach(), *grads]
    return [float((a.double() - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(found, meant, strict=True)]


def run(function, parts, grad, lengths, scaling=None):
    output = function(*parts, lengths, scaling)
    return output, torch.autograd.grad(output, parts, grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_by_products_it_is_at_least_as_exact_as_torch(dtype, spread):
    parts, grad = draw(LENGTHS, dtype, spread)
    ours = errors(*run(causal_pack.attend_pack, parts, grad, LENGTHS), parts, grad, LENGTHS)
    theirs = errors(*run(by_samples, parts, grad, LENGTHS), parts, grad, LENGTHS)
    names = ("output", "query", "key", "value")
    for name, found, torchs in zip(names, ours, theirs, strict=True):
        assert found < 1.25 * torchs, f"{name}: {found:.2g} of its norm, torch's {torchs:.2g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_full_precision_it_is_torchs_kernel(dtype):
    parts, grad = draw(LENGTHS, dtype)
    output, grads = run(causal_pack.attend_pack, parts, grad, LENGTHS, 0.3)
    found = errors(output, grads, parts, grad, LENGTHS, 0.3)
    assert max(found) < (2e-6 if dtype == torch.float32 else 1e-14), found


def test_long_and_short_samples_in_one_pack(monkeypatch):
    monkeypatch.setattr(causal_pack, "LONGEST_BY_PRODUCTS", 64)
    parts, grad = draw(LENGTHS, torch.bfloat16)
    found = errors(*run(causal_pack.attend_pack, parts, grad, LENGTHS), parts, grad, LENGTHS)
    assert max(found) < 0.01, found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_sample_does_not_see_its_neighbours(dtype):
    """To the bit: what a sample gives alone, it gives in a pack."""
    parts, grad = draw(LENGTHS, dtype)
    output, grads = run(causal_pack.attend_pack, parts, grad, LENGTHS)
    rows = slice(LENGTHS[0] + LENGTHS[1], sum(LENGTHS[:3]))
    alone = [part[:, rows].detach().clone().requires_grad_() for part in parts]
    output_alone, grads_alone = run(causal_pack.attend_pack, alone, grad[rows], [LENGTHS[2]])
    assert torch.equal(output[rows], output_alone)
    for whole, part in zip(grads, grads_alone, strict=True):
        assert torch.equal(whole[:, rows], part)


def test_nothing_of_the_size_of_the_scores_is_kept():
    parts, _ = draw([700], torch.bfloat16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        causal_pack.attend_pack(*parts, [700], None)
    assert max(tensor.numel() for tensor in saved) == 700 * NUM_HEADS * HEAD_SIZE
