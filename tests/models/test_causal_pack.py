"""Causal attention of a pack on the CPU: values and gradients of a loop in float64, and no other sample is seen."""

from __future__ import annotations

import pytest
import torch

from openrlhf.models.attention import causal_pack, dense
from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.models.cpu_kernels import attention as cpu_attention

HALF_PRECISION = [torch.bfloat16, torch.float16]
KERNELS_DTYPES = [torch.bfloat16, torch.float32]
HEADS = (6, 2)
HEAD_SIZE = 16
LENGTHS = [1, 63, 64, 65, 130, 200]
TAILS = [2, 15, 16, 17, 33, 48, 80, 127, 128, 129]
FLOAT32_ERROR = 1e-6  # of a norm; what float32's rounding may cost, however exact torch is


def draw(lengths, dtype, spread=1.0, heads=HEADS, head_size=HEAD_SIZE):
    """Query, key and value of a pack, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    num_heads, num_key_heads = heads
    shapes = [(count, sum(lengths), head_size) for count in (num_heads, num_key_heads, num_key_heads)]
    parts = [(spread * torch.randn(shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes]
    return parts, torch.randn(sum(lengths), num_heads, head_size, generator=generator).to(dtype)


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


def assert_as_exact_as_torch(parts, grad, lengths):
    ours = errors(*run(causal_pack.attend_pack, parts, grad, lengths), parts, grad, lengths)
    theirs = errors(*run(by_samples, parts, grad, lengths), parts, grad, lengths)
    for name, found, torchs in zip(("output", "query", "key", "value"), ours, theirs, strict=True):
        allowed = max(1.1 * torchs, FLOAT32_ERROR)
        assert found < allowed, f"{name}: {found:.2g} of its norm, torch's {torchs:.2g}"


@pytest.mark.parametrize("dtype", [*HALF_PRECISION, torch.float32])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_it_is_as_exact_as_torch(dtype, spread):
    parts, grad = draw(LENGTHS, dtype, spread)
    assert_as_exact_as_torch(parts, grad, LENGTHS)


@pytest.mark.parametrize("dtype", KERNELS_DTYPES)
@pytest.mark.parametrize(
    ("heads", "head_size"), [((1, 1), 16), ((4, 4), 64), ((4, 1), 128), ((8, 2), 80), ((2, 2), 256)]
)
def test_kinds_of_heads(heads, head_size, dtype):
    parts, grad = draw(TAILS, dtype, heads=heads, head_size=head_size)
    assert_as_exact_as_torch(parts, grad, TAILS)


@pytest.mark.parametrize("dtype", KERNELS_DTYPES)
@pytest.mark.parametrize("spread", [1.0, 4.0])  # of 4: scores rise far behind the first block
def test_a_long_sample(spread, dtype):
    lengths = [1500, 3, 700]
    parts, grad = draw(lengths, dtype, spread)
    assert_as_exact_as_torch(parts, grad, lengths)


def test_the_default_dtype_of_torch_changes_nothing():
    """The kernel writes float32, whatever a new tensor of torch's would hold."""
    parts, grad = draw([5, 70], torch.bfloat16)
    expected, expected_grads = run(causal_pack.attend_pack, parts, grad, [5, 70])
    torch.set_default_dtype(torch.bfloat16)
    try:
        found, grads = run(causal_pack.attend_pack, parts, grad, [5, 70])
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip((found, *grads), (expected, *expected_grads), strict=True))


@pytest.mark.parametrize("dtype", KERNELS_DTYPES)
@pytest.mark.parametrize("head_size", [24, 264])
def test_heads_that_the_kernel_does_not_take(head_size, dtype):
    parts, grad = draw([5, 40], dtype, head_size=head_size)
    assert not cpu_attention.computes(*parts)
    assert_as_exact_as_torch(parts, grad, [5, 40])


def test_without_our_kernel_torchs_computes(monkeypatch):
    parts, grad = draw(LENGTHS, torch.bfloat16)
    with_kernel = run(causal_pack.attend_pack, parts, grad, LENGTHS)
    monkeypatch.setattr(cpu_attention, "_kernels", lambda dtype: None)
    without = run(causal_pack.attend_pack, parts, grad, LENGTHS)
    assert max(errors(*without, parts, grad, LENGTHS)) < 0.005
    assert [grad.shape for grad in with_kernel[1]] == [grad.shape for grad in without[1]]


def test_in_float64_it_is_torchs_kernel():
    parts, grad = draw(LENGTHS, torch.float64)
    output, grads = run(causal_pack.attend_pack, parts, grad, LENGTHS, 0.3)
    assert max(errors(output, grads, parts, grad, LENGTHS, 0.3)) < 1e-14


def test_without_products_of_bfloat16_they_are_made_in_float32(monkeypatch):
    parts, grad = draw(LENGTHS, torch.bfloat16)
    monkeypatch.setattr(cpu_attention, "has_bfloat16_products", lambda: False)
    output, grads = run(causal_pack.attend_pack, parts, grad, LENGTHS)
    exact = [part.detach().float().requires_grad_() for part in parts]
    meant, meant_grads = run(causal_pack.attend_pack, exact, grad.float(), LENGTHS)
    assert torch.equal(output, meant.bfloat16())
    # The output that the gradients go through is the rounded one.
    for found, right in zip(grads, meant_grads, strict=True):
        assert float((found.float() - right).norm() / right.norm()) < 0.005


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.005), (torch.float32, FLOAT32_ERROR)])
def test_the_scale_is_the_models(dtype, allowed):
    parts, grad = draw(LENGTHS, dtype)
    found = errors(*run(causal_pack.attend_pack, parts, grad, LENGTHS, 0.05), parts, grad, LENGTHS, 0.05)
    assert max(found) < allowed, found


@pytest.mark.parametrize("dtype", KERNELS_DTYPES)
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


@pytest.mark.parametrize("dtype", KERNELS_DTYPES)
def test_a_number_that_is_none_stays_in_its_sample_and_behind_it(dtype):
    """Nothing may hide it: the step is held back because of it."""
    parts, grad = draw([40, 100, 30], dtype)
    with torch.no_grad():
        parts[1][:, 40 + 70] = torch.nan  # the key of the second sample's token 70
    output, grads = run(causal_pack.attend_pack, parts, grad, [40, 100, 30])
    touched = ~output.isfinite().all(-1).all(-1)
    assert touched.nonzero().flatten().tolist() == list(range(40 + 70, 140))
    for part in grads:
        assert part[:, :40].isfinite().all()
        assert part[:, 140:].isfinite().all()
        assert not part[:, 40:140].isfinite().all()


@pytest.mark.parametrize("dtype", KERNELS_DTYPES)
def test_any_layout_in_memory(dtype):
    parts, grad = draw(LENGTHS, dtype)
    expected = run(causal_pack.attend_pack, parts, grad, LENGTHS)
    strided = [part.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for part in parts]
    found = run(causal_pack.attend_pack, strided, grad.transpose(1, 2).contiguous().transpose(1, 2), LENGTHS)
    assert torch.equal(found[0], expected[0])
    for a, b in zip(found[1], expected[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", KERNELS_DTYPES)
def test_the_number_of_threads_changes_no_bit(dtype):
    parts, grad = draw(LENGTHS, dtype)
    before = torch.get_num_threads()
    found = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        output, grads = run(causal_pack.attend_pack, parts, grad, LENGTHS)
        found.append([output, *grads])
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("dtype", KERNELS_DTYPES)
def test_nothing_of_the_size_of_the_scores_is_kept(dtype):
    parts, _ = draw([700], dtype)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        causal_pack.attend_pack(*parts, [700], None)
    assert max(tensor.numel() for tensor in saved) == 700 * HEADS[0] * HEAD_SIZE


# --- samples that go on from a prompt --------------------------------------------------------------------------------

SHARED_LENGTHS = [70, 5, 130, 64, 16, 1, 200, 33, 64, 64]
PROMPT_OF = [None, 0, 0, None, 3, 3, 3, None, None, 8]


def in_full(query, key, value, prompt_of):
    """Each sample's queries beside the keys that they see, by torch's own attention."""
    outputs = []
    parts = [part.split(SHARED_LENGTHS, 1) for part in (query, key, value)]
    for number, prompt in enumerate(prompt_of):
        seen = [number] if prompt is None else [prompt, number]
        sample = [torch.cat([part[one] for one in seen], 1)[None] for part in parts]
        whole = dense.attend_causally(*sample, AttentionOptions(None))[0]
        outputs.append(whole[:, -SHARED_LENGTHS[number] :])
    return torch.cat(outputs, 1).transpose(0, 1)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 0.003), (torch.float32, FLOAT32_ERROR)])
@pytest.mark.parametrize(("heads", "head_size"), [(HEADS, HEAD_SIZE), ((4, 4), 64), ((4, 1), 128)])
def test_samples_that_share_a_prompt_are_as_exact_as_torch(heads, head_size, dtype, rounding):
    parts, grad = draw(SHARED_LENGTHS, dtype, heads=heads, head_size=head_size)
    exact = [part.detach().double().requires_grad_() for part in parts]
    meant, theirs = in_full(*exact, PROMPT_OF), in_full(*parts, PROMPT_OF)
    ours = causal_pack.attend_pack(*parts, SHARED_LENGTHS, None, PROMPT_OF)
    found = [
        [output, *torch.autograd.grad(output, of, grad.to(output.dtype))]
        for output, of in ((meant, exact), (ours, parts), (theirs, parts))
    ]
    for name, exactly, mine, torchs in zip(("output", "query", "key", "value"), *found, strict=True):
        errors = [
            float((part.detach().double() - exactly.detach()).norm() / exactly.detach().norm())
            for part in (mine, torchs)
        ]
        # torch rounds no scores where its products are made in float32: then ours must be below the inputs' rounding
        allowed = max(1.1 * errors[1], rounding)
        assert errors[0] < allowed, f"{name}: {errors[0]:.2g} of its norm, torch's {errors[1]:.2g}"


@pytest.mark.parametrize("dtype", KERNELS_DTYPES)
def test_answers_to_one_prompt_do_not_see_one_another(dtype):
    """To the bit: what an answer gives beside another, it gives alone behind the prompt."""
    parts, grad = draw([70, 65, 40], dtype)
    output, _ = run_shared(parts, grad, [70, 65, 40], [None, 0, 0])
    rows = [*range(70), *range(135, 175)]
    alone = [part[:, rows].detach().clone().requires_grad_() for part in parts]
    output_alone, _ = run_shared(alone, grad[rows], [70, 40], [None, 0])
    assert torch.equal(output[rows], output_alone)


def run_shared(parts, grad, lengths, prompt_of):
    output = causal_pack.attend_pack(*parts, lengths, None, prompt_of)
    return output, torch.autograd.grad(output, parts, grad)
