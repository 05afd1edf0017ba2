"""The CUDA back ends of attention against plain transformers in float64: on a GPU, and on the CPU with a stand-in."""

from __future__ import annotations

import torch

from openrlhf.models import Actor
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, gradients, make_samples, reference_log_probs

BF16_TOLERANCE = 0.05
RAGGED = (13, 1, 30, 2, 7, 64)
# A model's kind, changes to its configuration, and whether torch's kernel for CUDA computes all of its layers.
PACKED_MODELS = {
    "llama": ("llama", {}, True),
    "qwen3": ("qwen3", {}, True),
    "a window": ("mistral_window", {}, True),
    "heads of size 8": ("qwen3", dict(head_dim=8), True),
    "soft caps": ("gemma2", {}, False),
    "heads of size 20": ("qwen3", dict(head_dim=20), False),
    "heads of size 512": ("qwen3", dict(head_dim=512), False),
}


def check_packed(model: str, attention: str, device: str) -> None:
    """Log-probs and gradients of a pack in bfloat16; Args: attention: "torch_varlen" or "per_sample"."""
    kind, changes, _ = PACKED_MODELS[model]
    samples = make_samples(RAGGED)
    exact = tiny_model(kind, torch.float64, **changes)
    expected = reference_log_probs(exact, samples)
    expected.sum().backward()
    actor = Actor(tiny_model(kind, torch.bfloat16, **changes).to(device), "per_sample", packing_samples=True)
    actor.model.set_attn_implementation(attention)
    inputs = {key: value.to(device) if torch.is_tensor(value) else value for key, value in samples.packed().items()}
    found = actor.score_targets(**inputs).log_probs
    found.sum().backward()
    assert_close(found.detach().cpu(), expected.detach(), BF16_TOLERANCE, "log-probs")
    found_gradients = gradients(actor.model)
    for name, gradient in gradients(exact).items():
        assert_close(found_gradients[name].cpu(), gradient, 0.1, f"gradient of {name}")
