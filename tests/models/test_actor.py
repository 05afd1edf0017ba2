"""The actor's log-probs and gradients equal those of plain transformers, sample by sample, in float64."""

from __future__ import annotations

import pytest
import torch

from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.head.log_prob_head import LogProbHead
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, gradients, make_samples, reference_log_probs

KINDS = [
    "llama", "qwen3", "gemma2", "gemma3", "mistral_window", "mixtral", "qwen3_moe", "cohere", "granite", "gpt2",
    "opt", "gpt_oss", "phimoe", "longrope", "dynamic_rope",
]  # fmt: skip
# transformers computes these in float32 in places, whatever the model's dtype
LOOSE = {"gemma2": 2e-6, "gemma3": 2e-6, "cohere": 2e-6, "gpt_oss": 2e-6}


def reference(kind, samples, temperature=1.0):
    model = tiny_model(kind, torch.float64)
    log_probs = reference_log_probs(model, samples, temperature)
    log_probs.sum().backward()
    return log_probs.detach(), gradients(model)


def make_actor(kind, layout, **options):
    # Gemma 2 in transformers' own eager attention turns padding into NaN in float64
    attention = "per_sample" if kind == "gemma2" else "auto"
    return Actor(tiny_model(kind, torch.float64), attention, packing_samples=layout == "packed", **options)


def scores_of(actor, samples, layout):
    """(N,) log-probs in the order of the samples."""
    if layout == "packed":
        return actor.score_targets(**samples.packed()).log_probs
    sequences, mask = samples.padded(layout)
    return actor(sequences, mask)[(mask[:, 1:] * mask[:, :-1]).bool()]


@pytest.mark.parametrize("layout", ["right", "left", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_transformers(kind, layout):
    samples = make_samples()
    expected, expected_gradients = reference(kind, samples, temperature=0.7)
    actor = make_actor(kind, layout, temperature=0.7)
    found = scores_of(actor, samples, layout)
    found.sum().backward()
    tolerance = LOOSE.get(kind, 1e-12)
    assert_close(found.detach(), expected, tolerance, "log-probs")
    for name, gradient in gradients(actor.model).items():
        assert_close(gradient, expected_gradients[name], 10 * tolerance, f"gradient of {name}")


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("layout", ["right", "packed"])
def test_gradient_checkpointing(layout, use_reentrant):
    samples = make_samples()
    _, expected = reference("qwen3", samples)
    actor = make_actor("qwen3", layout)
    actor.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    actor.train()
    scores_of(actor, samples, layout).sum().backward()
    for name, gradient in gradients(actor.model).items():
        assert_close(gradient, expected[name], 1e-12, f"gradient of {name}")


def test_forward_is_float32_and_zero_at_padding():
    sequences, mask = make_samples().padded("left")
    log_probs = Actor(tiny_model("llama"))(sequences, mask)
    assert log_probs.shape == (sequences.shape[0], sequences.shape[1] - 1)
    assert log_probs.dtype == torch.float32
    assert (log_probs == 0).equal(~(mask[:, 1:] * mask[:, :-1]).bool())


def test_forward_without_a_mask_takes_every_token():
    actor = Actor(tiny_model("llama"))
    sequences = make_samples((9, 9)).padded()[0]
    assert torch.equal(actor(sequences), actor(sequences, torch.ones_like(sequences)))


def test_bfloat16_model_gives_float32_log_probs():
    actor = Actor(tiny_model("llama", torch.bfloat16), packing_samples=True)
    samples = make_samples()
    found = scores_of(actor, samples, "packed")
    assert found.dtype == torch.float32
    assert_close(found.detach(), reference("llama", samples)[0], 0.05, "log-probs")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mixtral"])
def test_no_target_still_touches_every_parameter(kind):
    actor = make_actor(kind, "packed")
    inputs = make_samples().packed()
    inputs["target_index"], inputs["target_ids"] = inputs["target_index"][:0], inputs["target_ids"][:0]
    scores = actor.score_targets(**inputs)
    assert scores.log_probs.shape == (0,)
    scores.log_probs.sum().backward()
    for name, parameter in actor.model.named_parameters():
        assert parameter.grad is not None, f"{name} is not part of the graph"
        assert not parameter.grad.any(), f"{name} has a gradient of something"


def test_gradients_never_cross_samples_in_a_pack():
    samples = make_samples()
    actor = make_actor("llama", "packed")
    embeddings = []
    actor.model.get_input_embeddings().register_forward_hook(lambda *call: embeddings.append(call[2]))
    inputs = samples.packed()
    log_probs = actor.score_targets(**inputs).log_probs
    sample_of_token = torch.repeat_interleave(torch.arange(len(samples.lengths)), torch.tensor(samples.lengths))
    sample_of_target = sample_of_token[inputs["target_index"]]
    for sample in sample_of_target.unique():
        own_loss = log_probs[sample_of_target == sample].sum()
        (gradient,) = torch.autograd.grad(own_loss, embeddings[0], retain_graph=True)
        assert gradient[0, sample_of_token == sample].any()
        assert not gradient[0, sample_of_token != sample].any(), f"the loss of sample {sample} reaches another"


def test_lora_keeps_the_thrifty_head_and_starts_as_the_plain_model():
    samples = make_samples()
    actor = make_actor("qwen3", "packed", lora_rank=4)
    assert_close(scores_of(actor, samples, "packed").detach(), reference("qwen3", samples)[0], 1e-12, "log-probs")
    assert isinstance(actor.scorer.base_model.get_output_embeddings(), LogProbHead)
    trainable = [name for name, parameter in actor.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora" in name for name in trainable)


def test_lora_trains_with_reentrant_checkpointing():
    actor = make_actor("llama", "packed", lora_rank=4)
    actor.gradient_checkpointing_enable({"use_reentrant": True})
    actor.train()
    scores_of(actor, make_samples(), "packed").sum().backward()
    gradients_of_b = [p.grad for name, p in actor.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.any() for gradient in gradients_of_b)


def test_lora_on_the_head_goes_through_full_logits():
    samples = make_samples()
    actor = make_actor("llama", "packed", lora_rank=4, target_modules=["lm_head"])
    assert not isinstance(actor.scorer.base_model.get_output_embeddings(), LogProbHead)
    found = scores_of(actor, samples, "packed")
    assert_close(found.detach(), reference("llama", samples)[0], 1e-12, "log-probs")
    found.sum().backward()
    assert all(p.grad is not None for name, p in actor.named_parameters() if "lora" in name)


def test_lora_names_the_layers_there_are():
    with pytest.raises(UserError, match="q_proj"):
        make_actor("llama", "packed", lora_rank=4, target_modules=["no_such_layer"])


def test_generate_continues_the_prompt_with_the_likeliest_tokens():
    actor = Actor(tiny_model("llama"))
    prompt = make_samples((5,)).padded()[0]
    generated = actor.generate(prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert torch.equal(generated[:, :5], prompt)
    with torch.no_grad():
        logits = actor.model(generated).logits
    assert torch.equal(generated[0, 5:], logits[0, 4:7].argmax(-1))


def test_a_packed_actor_generates_from_padded_prompts_too():
    sequences, mask = make_samples((6, 3)).padded("left")
    plain = Actor(tiny_model("mistral_window"))
    packed = Actor(tiny_model("mistral_window"), packing_samples=True)
    options = dict(attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(plain.generate(sequences, **options), packed.generate(sequences, **options))


def test_an_attached_engine_is_used_and_is_no_child():
    actor = Actor(tiny_model("llama"))
    calls = []

    class Engine(torch.nn.Module):
        def forward(self, **inputs):
            calls.append(set(inputs))
            return actor.scorer(**inputs)

    actor.attach_engine(Engine())
    actor(make_samples((4,)).padded()[0])
    assert len(calls) == 1
    assert [name for name, _ in actor.named_children()] == ["scorer"]


def test_liger_is_asked_for_by_its_install_line():
    with pytest.raises(UserError, match="pip install liger-kernel"):
        Actor(tiny_model("llama"), use_liger_kernel=True)
