"""Weights shared out over ranks by DeepSpeed's AutoTP: the same steps, whole models, and a run that goes on."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, Llama4TextConfig

from openrlhf.errors import UserError
from openrlhf.models.tensor_parallel import check_tensor_parallel, tensor_parallel_plan
from tests.equivalence import tensor_parallel_cases as cases
from tests.equivalence.cells import Layout, train_in_layout
from tests.equivalence.pair_cells import PairRecipe, train_pairs, train_pairs_in_layout
from tests.equivalence.reference import Recipe
from tests.equivalence.test_layouts import assert_same, assert_same_in_bf16, reference
from tests.equivalence.test_pairs import SMOOTHED
from tests.helpers.ranks import RankPool
from tests.helpers.slow import slow
from tests.helpers.tiny_models import tiny_model
from tests.zoo.shrink import small_config

CELLS = [
    ("llama", Layout(zero_stage=0, micro_batch_size=2, tensor_parallel=2)),
    ("llama", Layout(zero_stage=1, micro_batch_size=8, packed=True, tensor_parallel=2)),
    ("qwen3", Layout(zero_stage=2, max_tokens=64, packed=True, tensor_parallel=2, checkpointing=True)),
    ("qwen3", Layout(zero_stage=1, micro_batch_size=4, tensor_parallel=2, offload=True)),
    ("gemma2", Layout(zero_stage=2, micro_batch_size=3, tensor_parallel=2)),
    ("mixtral", Layout(zero_stage=2, micro_batch_size=4, packed=True, tensor_parallel=2)),
]


BF16_CELLS = [
    ("llama", Layout(zero_stage=0, micro_batch_size=4, tensor_parallel=2, dtype="bf16")),
    ("qwen3", Layout(zero_stage=1, micro_batch_size=4, packed=True, tensor_parallel=2, dtype="bf16")),
    ("qwen3", Layout(zero_stage=2, micro_batch_size=4, packed=True, tensor_parallel=2, dtype="bf16")),
]


@pytest.fixture(scope="module")
def two_sharing_ranks():
    """Ranks of their own: DeepSpeed keeps the tensor groups of a process for as long as it lives."""
    with RankPool(2) as pool:
        yield pool


def test_weights_are_shared_out(two_sharing_ranks):
    """Half of attention and MLP on each rank; head, embeddings and norms whole."""
    held = two_sharing_ranks.run(cases.names_of_parameters_held, Recipe("qwen3"), Layout(tensor_parallel=2))
    assert held[0] == held[1]
    in_part, whole = held[0]
    assert {name.split(".")[-2] for name in in_part} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert {name.split(".")[-2] for name in whole} == {
        "embed_tokens", "q_norm", "k_norm", "input_layernorm", "post_attention_layernorm", "norm"
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "layout"), CELLS, ids=[f"{kind}-{layout}" for kind, layout in CELLS])
def test_sharing_weights_changes_nothing(two_sharing_ranks, kind, layout):
    recipe = Recipe(kind)
    assert_same(two_sharing_ranks.run(train_in_layout, recipe, layout)[0], reference(recipe))


@pytest.mark.parametrize("recipe", [PairRecipe("dpo", "llama"), PairRecipe("rm", "qwen3"), SMOOTHED], ids=str)
def test_sharing_weights_changes_nothing_of_pairs(two_sharing_ranks, recipe):
    layout = Layout(zero_stage=2, micro_batch_size=2, packed=True, tensor_parallel=2)
    assert_same(two_sharing_ranks.run(train_pairs_in_layout, recipe, layout)[0], train_pairs(recipe))


@pytest.mark.parametrize(("kind", "layout"), [BF16_CELLS[0], *slow(BF16_CELLS[1:])], ids=str)
def test_sharing_weights_in_bf16(two_sharing_ranks, kind, layout):
    recipe = Recipe(kind, has_bf16_weights=True)
    assert_same_in_bf16(two_sharing_ranks.run(train_in_layout, recipe, layout)[0], reference(recipe))


def test_two_pairs_of_ranks_share_weights():
    layout = Layout(zero_stage=2, micro_batch_size=2, tensor_parallel=2)
    with RankPool(4) as ranks:
        assert_same(ranks.run(train_in_layout, Recipe("qwen3"), layout)[0], reference(Recipe("qwen3")))


@pytest.mark.parametrize(("zero_stage", "dtype"), [(0, "fp32"), (0, "bf16"), (2, "fp32")])
def test_a_run_is_exported_whole_and_goes_on_to_the_bit(two_sharing_ranks, tmp_path, zero_stage, dtype):
    layout = Layout(zero_stage=zero_stage, micro_batch_size=4, tensor_parallel=2, dtype=dtype)
    found = two_sharing_ranks.run(cases.save_export_and_resume, Recipe("qwen3"), layout, tmp_path)[0]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    for name, value in found.weights_when_saved.items():
        assert torch.equal(exported[name], value), f"{name} as exported"
    for name, value in found.weights_unbroken.items():
        assert torch.equal(found.weights_resumed[name], value), f"{name} after resuming"


def test_another_size_cannot_resume_and_is_told_so(two_sharing_ranks, tmp_path):
    layout = Layout(zero_stage=1, micro_batch_size=4, tensor_parallel=2)
    message = two_sharing_ranks.run(cases.resume_with_another_size, Recipe("llama"), layout, tmp_path)[0]
    assert "--ds.tensor_parallel_size 1, this run has 2" in message


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="does not divide the model's num_key_value_heads, 2"):
        check_tensor_parallel(tiny_model("qwen3").config, 4)


def test_a_model_without_a_plan_is_refused():
    with pytest.raises(UserError, match="transformers has no plan to share out a gpt2 model"):
        check_tensor_parallel(tiny_model("gpt2").config, 2)


def test_heads_that_do_not_divide_in_one_layer_are_refused():
    """Gemma 4's layers that see everything may have key heads of their own."""
    settings = dict(num_key_value_heads=4, attention_k_eq_v=True, num_kv_shared_layers=0)
    check_tensor_parallel(tiny_model("gemma4", **settings, num_global_key_value_heads=2).config, 2)
    with pytest.raises(UserError, match="does not divide the model's num_key_value_heads, 1"):
        check_tensor_parallel(tiny_model("gemma4", **settings, num_global_key_value_heads=1).config, 2)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Llama4TextConfig(), "a llama4_text model adds in place to what a shared layer gives"),
        (Gemma3nTextConfig(), "a gemma3n_text model keeps the largest of an MLP's inner features"),
    ],
)
def test_what_ranks_cannot_compute_in_parts_is_refused(config, reason):
    with pytest.raises(UserError, match=reason):
        check_tensor_parallel(config, 2)


def test_a_gemma_3n_that_keeps_all_features_is_shared_out():
    check_tensor_parallel(Gemma3nTextConfig(activation_sparsity_pattern=[0.0] * 35), 2)


def test_weights_beside_the_layers_are_refused():
    model = tiny_model("gpt_oss")
    model.config.base_model_tp_plan = {"layers.*.self_attn.q_proj": "colwise"}
    with pytest.raises(UserError, match="has sinks, k_proj.weight.* in its GptOssAttention, which"):
        tensor_parallel_plan(model)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (dict(model_type="phi", qk_layernorm=True), "q_layernorm.weight, .* in its PhiAttention"),
        (dict(model_type="apertus"), "act_fn.alpha_p, act_fn.alpha_n in its ApertusMLP"),
    ],
    ids=["phi", "apertus"],
)
def test_weights_deeper_in_a_shared_module_are_refused(settings, what):
    """Each rank would train them by its own part of their gradient."""
    with pytest.raises(UserError, match=what):
        tensor_parallel_plan(tiny_model("llama", **settings))


def test_a_layer_that_the_plan_does_not_name_is_no_matter_in_an_encoder_of_images():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small_config("gemma3"))
    assert any("out_proj" in name for name, _ in model.named_parameters())
    assert tensor_parallel_plan(model)
