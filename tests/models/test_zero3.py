"""The actor inside DeepSpeed's engine: ZeRO-3, which takes weights away between modules, changes nothing."""

from __future__ import annotations

import pytest

from openrlhf.models import Actor
from tests.helpers.tiny_models import tiny_model
from tests.models import zero3_cases
from tests.models.batches import assert_close
from tests.zoo.shrink import small_model_named

pytest.importorskip("deepspeed")

CASES = {
    "tied weights": dict(kind="qwen3"),
    "soft-capped logits, checkpointing": dict(kind="gemma2", checkpointing=True),
    "a rank without targets": dict(kind="llama", only_rank_0_has_targets=True),
    "experts, auxiliary loss": dict(kind="mixtral", with_aux_loss=True),
    "experts, auxiliary loss, checkpointing": dict(kind="qwen3_moe", with_aux_loss=True, checkpointing=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_zero3_equals_zero1(two_ranks, case):
    expected_losses, expected_norms = two_ranks.run(zero3_cases.train, "", stage=1, steps=3, **case)[0]
    losses, norms = two_ranks.run(zero3_cases.train, "", stage=3, steps=3, **case)[0]
    assert_close(losses, expected_losses, 1e-6, "loss")
    assert_close(norms, expected_norms, 1e-5, "gradient norm")


def test_a_model_loaded_in_shards_equals_one_in_memory(two_ranks, tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path)
    expected, _ = two_ranks.run(zero3_cases.train, "", kind="qwen3", stage=1, steps=2)[0]
    losses, _ = two_ranks.run(zero3_cases.train, str(tmp_path), kind="qwen3", stage=3, steps=2)[0]
    assert_close(losses, expected, 1e-6, "loss")


def test_embeddings_that_the_files_hold_apart_stay_apart_though_the_configuration_ties_them(two_ranks, tmp_path):
    zero3_cases.save_with_untrue_ties(tmp_path)
    assert two_ranks.run(zero3_cases.has_tied_embeddings, str(tmp_path)) == [False] * 2
    expected, _ = two_ranks.run(zero3_cases.train, str(tmp_path), kind="qwen3", stage=1, steps=2)[0]
    losses, _ = two_ranks.run(zero3_cases.train, str(tmp_path), kind="qwen3", stage=3, steps=2)[0]
    assert_close(losses, expected, 1e-6, "loss")


def test_what_lies_behind_a_weight_on_the_last_rank_is_not_looked_at(two_ranks):
    assert two_ranks.run(zero3_cases.non_finite_of_sizes_that_ranks_do_not_divide) == [([], []), ([], ["weight"])]


def test_a_model_made_beside_one_in_shards_is_whole(two_ranks, tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path)
    assert two_ranks.run(zero3_cases.partitioned_beside_an_actor, str(tmp_path)) == [(True, False)] * 2


def test_ranks_generate_together_though_one_is_done_earlier(two_ranks, tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path)
    answers = two_ranks.run(zero3_cases.generate, str(tmp_path), [2, 5])
    actor = Actor(str(tmp_path), param_dtype="fp32")
    assert answers == [zero3_cases.generated(actor, max_new_tokens) for max_new_tokens in (2, 5)]


@pytest.mark.parametrize("only_rank_0_has_targets", [False, True], ids=["all have targets", "a rank without targets"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_computed_from_log_probs_travel_through_the_engine(two_ranks, stage, only_rank_0_has_targets):
    case = dict(kind="qwen3", steps=3, only_rank_0_has_targets=only_rank_0_has_targets)
    losses, _ = two_ranks.run(zero3_cases.train, "", stage=stage, weighs_by_probability=True, **case)[0]
    assert_close(losses, zero3_cases.plain_losses_by_probability(**case), 1e-5, "loss")


def test_a_model_that_cannot_be_loaded_in_parts_is_told_so(two_ranks, tmp_path):
    small_model_named("roformer").save_pretrained(tmp_path)
    for told in two_ranks.run(zero3_cases.refusal, str(tmp_path)):
        assert "ZeRO-3 loads a model in parts, which not every model bears: --ds.zero_stage 0, 1 or 2" in told
