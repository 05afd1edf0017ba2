"""The auxiliary loss equals transformers' own on real tokens, and does not depend on layout."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from openrlhf.errors import UserError
from openrlhf.models import Actor, expert_leaf_modules
from openrlhf.models.moe import load_balancing_loss, num_experts_per_token
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, make_samples

EXPERTS, TOP_K = 4, 2


def router_logits(num_tokens=30, num_layers=3):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(num_tokens, EXPERTS, generator=generator) for _ in range(num_layers))


def test_equals_transformers_formula():
    logits = router_logits()
    assert_close(load_balancing_loss(logits, TOP_K), load_balancing_loss_func(logits, EXPERTS, TOP_K), 1e-6, "loss")


def test_padding_is_left_out():
    logits = router_logits()
    is_real = torch.arange(30) % 3 > 0
    alone = load_balancing_loss(tuple(layer[is_real] for layer in logits), TOP_K)
    assert_close(load_balancing_loss(logits, TOP_K, is_real), alone, 1e-6, "loss")


def test_perfect_balance_costs_the_number_of_experts_per_token():
    logits = (torch.eye(4)[[0, 1, 2, 3]] * 50 + torch.eye(4)[[1, 2, 3, 0]] * 50,)
    assert load_balancing_loss(logits, TOP_K).item() == pytest.approx(TOP_K)


def test_no_real_token_costs_nothing():
    assert load_balancing_loss(router_logits(), TOP_K, torch.zeros(30, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_actor_gives_the_same_loss_padded_and_packed(kind):
    samples = make_samples()
    sequences, mask = samples.padded()
    model = tiny_model(kind)
    expected = model(input_ids=sequences, attention_mask=mask, output_router_logits=True).aux_loss
    expected.backward()
    packed = Actor(tiny_model(kind), packing_samples=True)
    inputs = samples.packed()
    padded_inputs = dict(
        input_ids=sequences,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        attention_mask=mask,
        target_index=inputs["target_index"][:0],
        target_ids=inputs["target_ids"][:0],
    )
    for actor, arguments in ((packed, inputs), (Actor(tiny_model(kind)), padded_inputs)):
        found = actor.score_targets(**arguments, with_aux_loss=True).aux_loss
        found.backward()
        assert_close(found.detach(), expected.detach(), 1e-6, "auxiliary loss")
        for (name, found_weight), weight in zip(actor.model.named_parameters(), model.parameters(), strict=True):
            if "gate.weight" in name:
                assert_close(found_weight.grad, weight.grad, 1e-6, f"gradient of {name}")


def test_routers_that_tell_probabilities_are_not_softened_twice():
    """Held to float64, from the scores that the routers of Gemma 4 compute."""
    model = tiny_model(
        "gemma4",
        torch.float64,
        enable_moe_block=True,
        num_experts=EXPERTS,
        top_k_experts=TOP_K,
        moe_intermediate_size=32,
    )
    routers = {name: module for name, module in model.named_modules() if name.endswith("router.proj")}
    assert routers
    sequences, mask = make_samples().padded()
    scores = []
    hooks = [one.register_forward_hook(lambda *args: scores.append(args[2])) for one in routers.values()]
    model(input_ids=sequences, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    flat = tuple(one.flatten(0, -2) for one in scores)
    expected = load_balancing_loss(flat, TOP_K, mask.flatten().bool())
    expected.backward()
    gradients = {name: router.weight.grad.clone() for name, router in routers.items()}
    model.zero_grad()
    inputs = dict(input_ids=sequences, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    none = torch.zeros(0, dtype=torch.long)
    found = Actor(model).score_targets(**inputs, target_index=none, target_ids=none, with_aux_loss=True).aux_loss
    found.backward()
    assert_close(found.detach(), expected.detach(), 1e-5, "auxiliary loss")
    for name, router in routers.items():
        assert_close(router.weight.grad, gradients[name], 1e-4, f"gradient of {name}")


def test_aux_loss_has_its_gradient_with_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        actor = Actor(tiny_model("mixtral"), packing_samples=True)
        if checkpointing:
            actor.gradient_checkpointing_enable()
            actor.train()
        actor.score_targets(**make_samples().packed(), with_aux_loss=True).aux_loss.backward()
        gradients.append({n: p.grad for n, p in actor.named_parameters() if n.endswith("gate.weight")})
    for name, gradient in gradients[0].items():
        assert gradient.any(), f"{name} has no gradient"
        assert_close(gradients[1][name], gradient, 1e-6, f"gradient of {name}")


def test_reentrant_checkpointing_would_lose_the_gradient_and_is_refused():
    actor = Actor(tiny_model("mixtral"), packing_samples=True)
    actor.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UserError, match="reentrant"):
        actor.score_targets(**make_samples().packed(), with_aux_loss=True)


def test_a_model_without_experts_has_no_aux_loss():
    with pytest.raises(UserError, match="no experts"):
        Actor(tiny_model("llama"), packing_samples=True).score_targets(**make_samples().packed(), with_aux_loss=True)


def test_a_model_of_a_family_with_experts_whose_layers_are_dense_is_told_so():
    dense = tiny_model("qwen3_moe", mlp_only_layers=[0, 1])
    with pytest.raises(UserError, match="tells no router's logits"):
        Actor(dense, packing_samples=True).score_targets(**make_samples().packed(), with_aux_loss=True)


@pytest.mark.parametrize(
    ("model_type", "fields", "top_k"),
    [
        ("ernie4_5_moe", dict(moe_num_experts=8, moe_k=3), 3),
        ("dbrx", dict(ffn_config=dict(moe_num_experts=8, moe_top_k=3)), 3),
        ("hunyuan_v1_moe", dict(num_experts=8, moe_topk=3), 3),
        ("llama", {}, None),
    ],
)
def test_experts_are_found_under_each_family_s_names(model_type, fields, top_k):
    assert num_experts_per_token(AutoConfig.for_model(model_type, **fields)) == top_k


def test_global_loads_of_two_ranks_equal_those_of_one(two_ranks):
    expected = load_balancing_loss(router_logits(), TOP_K).item()
    shares = two_ranks.run(share_of_global_loss)
    assert_close(sum(shares), expected, 1e-6, "sum of the ranks' shares")


def share_of_global_loss():
    import torch.distributed as dist

    mine = slice(0, 11) if dist.get_rank() == 0 else slice(11, 30)
    logits = tuple(layer[mine] for layer in router_logits())
    return load_balancing_loss(logits, TOP_K, group=dist.group.WORLD).item()


@pytest.mark.parametrize(("kind", "expected"), [("llama", None), ("mixtral", 2), ("qwen3_moe", 2), ("gpt_oss", 2)])
def test_which_models_have_experts(kind, expected):
    model = tiny_model(kind)
    assert num_experts_per_token(model.config) == expected
    assert bool(expert_leaf_modules(model)) == (expected is not None)


def test_leaf_modules_hold_router_and_experts():
    assert [leaf.__name__ for leaf in expert_leaf_modules(tiny_model("qwen3_moe"))] == ["Qwen3MoeSparseMoeBlock"]
