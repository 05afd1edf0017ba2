"""A model that lets samples of a row see one another, or miscounts their positions, is refused before training."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.attention.choice import CannotPack
from openrlhf.models.attention.per_sample import CausalMask
from openrlhf.models.head.log_prob_head import LogProbHead
from openrlhf.objectives import SFTObjective
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer import Trainer
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, make_samples, reference_log_probs
from tests.zoo.shrink import small_model_named

SIZES = dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, max_position_embeddings=128)


def with_layers_that_mix(kind="llama"):
    """A model whose last layer adds to each token the mean of its row, as no attention of ours could prevent."""
    model = tiny_model(kind)
    model.model.layers[-1].register_forward_hook(lambda module, args, out: out + 0.1 * out.mean(1, keepdim=True))
    return model


def roberta(dtype=torch.float32):
    config = AutoConfig.for_model("roberta", num_attention_heads=4, is_decoder=True, **SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.08)
    return model


@pytest.mark.parametrize(("kind", "attention"), [("opt", "sdpa"), ("opt", "eager"), ("gpt_oss", "eager")])
def test_plain_attention_that_leaks_is_refused_with_what_to_use_instead(kind, attention):
    message = f"with the attention {attention}: .* move when the sample before it changes. Use .* auto, or remove"
    with pytest.raises(UserError, match=message):
        Actor(tiny_model(kind), attention, packing_samples=True)


def test_a_model_that_loses_the_borders_is_told_of_an_attention_that_needs_none():
    config = AutoConfig.for_model("nemotron", num_attention_heads=4, num_key_value_heads=4, **SIZES)
    with pytest.raises(UserError, match=r"NemotronForCausalLM .* Use --ds.attn_implementation sdpa, or remove"):
        Actor(AutoModelForCausalLM.from_config(config), packing_samples=True)
    Actor(AutoModelForCausalLM.from_config(config), "sdpa", packing_samples=True)


def test_an_attention_that_fails_on_a_model_is_passed_over(monkeypatch):
    monkeypatch.setattr(CausalMask, "__getitem__", None)
    with pytest.raises(CannotPack, match=r"per_sample: it fails in a pack, by TypeError: .*attn_implementation sdpa"):
        Actor(small_model_named("gemma4_text, shared keys"), packing_samples=True)


def test_a_model_that_fails_alone_tells_of_its_own_fault():
    model = tiny_model("llama")
    model.model.layers[-1].register_forward_hook(lambda module, args, out: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Actor(model, packing_samples=True)


def test_a_mask_that_is_not_written_out_can_be_cut_to_the_whole_alone():
    mask = CausalMask(window=3, has_several_samples=False)
    assert mask[:, :, slice(-0, None), :] is mask
    with pytest.raises(UserError, match="must be written out"):
        mask[:, :, -1:, :]


def test_where_no_attention_helps_none_is_named():
    with pytest.raises(UserError, match=r"LlamaForCausalLM .* changes. Remove --ds.packing_samples"):
        Actor(with_layers_that_mix(), packing_samples=True)


def test_a_model_that_counts_positions_through_the_pack_is_refused(monkeypatch):
    monkeypatch.setattr("openrlhf.models.prepared_model.first_position", lambda model: 0)
    with pytest.raises(UserError, match="in a pack a sample gets other hidden states than alone"):
        Actor(roberta(), packing_samples=True)


def test_padding_that_is_read_is_refused():
    with pytest.raises(UserError, match=r"on padded batches .* Give --train.micro_batch_size 1"):
        Actor(with_layers_that_mix()).check_layout(False, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral_window", "qwen3_moe", "gpt2", "gpt_oss"])
def test_rounding_is_no_leak(kind, dtype):
    model = tiny_model(kind, dtype)
    Actor(model, packing_samples=True)
    Actor(model, "auto").check_layout(False, None)


def test_several_end_tokens_are_as_good_as_one():
    assert Actor(tiny_model("llama", eos_token_id=[2, 5]), packing_samples=True).config.eos_token_id == [2, 5]


def test_nothing_is_left_of_a_look():
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    model.model.layers[0].register_forward_pre_hook(lambda module, args: torch.rand(1) and None)
    Actor(model, packing_samples=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()][: len(modes)] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_ring_that_leaks_is_refused_on_all_its_ranks(two_ranks):
    """The leak is on one rank."""
    assert two_ranks.run(refusal_of_a_ring, leaks=True) == ["in a pack the hidden states of a sample move"] * 2
    assert two_ranks.run(refusal_of_a_ring, leaks=False) == ["none"] * 2


def refusal_of_a_ring(leaks: bool) -> str:
    import torch.distributed as dist

    model = with_layers_that_mix() if leaks and dist.get_rank() == 0 else tiny_model("llama")
    actor = Actor(model, "ring", packing_samples=True, ring_attn_size=2)
    try:
        actor.check_layout(True, dist.group.WORLD)
    except UserError as error:
        return str(error).split(": ")[1].split(" when")[0]
    return "none"


@pytest.mark.parametrize(("micro_batch_size", "is_refused"), [(1, False), (2, True)])
def test_a_trainer_looks_before_its_first_step(micro_batch_size, is_refused):
    strategy = DeepspeedStrategy(micro_train_batch_size=micro_batch_size)
    trainer = Trainer(Actor(with_layers_that_mix()), strategy, [], None, SFTObjective())
    with pytest.raises(
        UserError if is_refused else AssertionError, match="padded batches" if is_refused else "prepare"
    ):
        trainer.run([], [])


@pytest.mark.parametrize("packed", [False, True])
def test_positions_of_the_roberta_family_begin_behind_that_of_padding(packed):
    samples = make_samples()
    expected = reference_log_probs(roberta(torch.float64), samples).detach()
    actor = Actor(roberta(torch.float64), packing_samples=packed)
    if packed:
        found = actor.score_targets(**samples.packed()).log_probs
    else:
        sequences, mask = samples.padded()
        found = actor(sequences, mask)[(mask[:, 1:] * mask[:, :-1]).bool()]
    assert_close(found.detach(), expected, 1e-12, "log-probs")


def test_a_backbone_is_found_under_the_name_that_it_has():
    config = AutoConfig.for_model(
        "llama4_text", num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=4,
        intermediate_size_mlp=96, **SIZES,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    samples = make_samples()
    expected = reference_log_probs(model, samples).detach()
    sequences, mask = samples.padded()
    actor = Actor(model)
    assert isinstance(model.get_output_embeddings(), LogProbHead)
    found = actor(sequences, mask)[(mask[:, 1:] * mask[:, :-1]).bool()]
    assert_close(found.detach(), expected, 1e-5, "log-probs")
