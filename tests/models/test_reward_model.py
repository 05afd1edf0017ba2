"""A reward model is made of a base model or of another reward model; what it cannot be made of is refused by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from openrlhf.errors import UserError
from openrlhf.models import RewardModel, get_llm_for_sequence_regression
from openrlhf.models.classifier import classifier_facts
from tests.helpers.tiny_models import tiny_model
from tests.objectives import reward_cases
from tests.objectives.reward_cases import tiny_classifier
from tests.zoo.shrink import small_model_named


def renamed(folder, old: str, new: str) -> None:
    file = folder / "model.safetensors"
    weights = {name.replace(old, new): value for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mixtral", "phimoe"])  # phimoe's own head has a bias
def test_the_head_of_a_base_model_starts_by_its_seed(kind, tmp_path):
    tiny_model(kind).save_pretrained(tmp_path)
    one, same, other = (RewardModel(str(tmp_path), param_dtype="fp32", head_seed=seed) for seed in (1, 1, 2))
    assert one.head_begins
    assert torch.equal(one.model.score.weight, same.model.score.weight)
    assert not torch.equal(one.model.score.weight, other.model.score.weight)
    assert 0 < one.model.score.weight.std() < 0.1


def test_a_head_of_language_that_files_call_otherwise_is_no_extra_weight(tmp_path):
    small_model_named("gpt_neox").save_pretrained(tmp_path)
    assert "embed_out.weight" in load_file(tmp_path / "model.safetensors")
    assert RewardModel(str(tmp_path), param_dtype="fp32").head_begins


def test_the_head_starts_alike_in_parts_and_whatever_was_drawn_before(one_rank, two_ranks, tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path)
    expected = RewardModel(str(tmp_path), param_dtype="fp32").model.score.weight[0]
    for ranks, zero_stage in ((one_rank, 0), (two_ranks, 2), (two_ranks, 3)):
        for found in ranks.run(reward_cases.head_at_start, str(tmp_path), zero_stage):
            assert torch.equal(found, expected)


def test_a_reward_model_keeps_its_head(tmp_path):
    model = tiny_classifier()
    model.save_pretrained(tmp_path)
    found = RewardModel(str(tmp_path), param_dtype="fp32")
    assert not found.head_begins
    assert torch.equal(found.model.score.weight, model.score.weight)


def test_a_head_of_another_name_is_read_and_exported_as_score(tmp_path):
    model = tiny_classifier("mixtral")
    model.save_pretrained(tmp_path / "read")
    renamed(tmp_path / "read", "score.", "value_head.")
    found = RewardModel(str(tmp_path / "read"), param_dtype="fp32", head_prefix="value_head")
    assert torch.equal(found.model.score.weight, model.score.weight)
    found.model.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.score.weight, model.score.weight)


@pytest.mark.parametrize("is_base", [True, False], ids=["config of a base", "config of a classifier"])
def test_a_head_of_another_name_is_not_begun_anew(tmp_path, is_base):
    tiny_classifier().save_pretrained(tmp_path)
    renamed(tmp_path, "score.", "value_head.")
    if is_base:
        tiny_model("llama").config.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"has not: value_head.weight(?s:.*)If value_head is its head, say so by --ds.v"
    ):
        RewardModel(str(tmp_path))


def test_a_classifier_that_lost_its_head_is_refused(tmp_path):
    tiny_classifier().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(
        {name: value for name, value in load_file(file).items() if name != "score.weight"}, file, {"format": "pt"}
    )
    with pytest.raises(UserError, match="lacks weights of the model: score.weight"):
        RewardModel(str(tmp_path))


def test_a_base_that_lacks_a_layer_is_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(
        {name: value for name, value in load_file(file).items() if "layers.1.mlp" not in name}, file, {"format": "pt"}
    )
    with pytest.raises(UserError, match="lacks weights of the model: model.layers.1.mlp"):
        RewardModel(str(tmp_path))


def test_several_labels_are_refused_before_weights_are_read(tmp_path):
    config = tiny_model("llama").config
    config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    config.architectures = ["LlamaForSequenceClassification"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is a classifier with 3 labels \(bad, so-so, good\): a reward model has one"):
        classifier_facts(str(tmp_path), "fp32")


def test_a_type_without_a_classifier_is_refused_before_weights_are_read(tmp_path):
    tiny_model("granite").config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a granite model, of which transformers has no classifier"):
        classifier_facts(str(tmp_path), "fp32")


def test_a_head_behind_pooling_is_refused():
    config = AutoConfig.for_model("bert", hidden_size=16, num_attention_heads=2, num_hidden_layers=1, num_labels=1)
    with pytest.raises(UserError, match="BertForSequenceClassification has no head `score` of one output"):
        RewardModel(AutoModelForSequenceClassification.from_config(config))


def test_adapters_and_the_whole_head_are_trained():
    model = RewardModel(tiny_classifier(), lora_rank=4)
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    assert any("score" in name for name in trained)
    assert all("lora_" in name or "score" in name for name in trained)


# --- OpenRLHF's function


def test_openrlhfs_function_gives_the_reward_of_each_row(tmp_path):
    model = tiny_classifier().eval()
    model.save_pretrained(tmp_path)
    loaded = get_llm_for_sequence_regression(str(tmp_path), "reward", param_dtype="fp32")
    rows = torch.arange(3, 33).view(3, 10)
    mask = torch.tensor([[1] * 10, [1] * 7 + [0] * 3, [0] * 4 + [1] * 6])
    with torch.no_grad():
        expected = [model(input_ids=row[kept.bool()][None]).logits.item() for row, kept in zip(rows, mask, strict=True)]
        assert loaded(rows, mask).tolist() == pytest.approx(expected, abs=1e-6)
        pack, lengths = rows[mask.bool()][None], mask.sum(-1).tolist()
        assert loaded(pack, packed_seq_lens=lengths, pad_sequence=True).tolist() == pytest.approx(expected, abs=1e-6)
        rewards, output = loaded(rows, mask, return_output=True, ring_attn_group=None)
        assert (rewards.tolist(), output.aux_loss.item()) == (pytest.approx(expected, abs=1e-6), 0.0)
    with pytest.raises(UserError, match="ring_attn_group asks for a ring: leave it out, or train by RewardModelTrai"):
        loaded(rows, mask, ring_attn_group="a ring")


def test_openrlhfs_function_takes_what_an_actor_takes(tmp_path, monkeypatch, caplog):
    """Flash attention on a CPU, a way to compute experts, and names that mean nothing here: told, and trained."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny_classifier("mixtral").save_pretrained(tmp_path)
    model = get_llm_for_sequence_regression(
        str(tmp_path), "reward", param_dtype="fp32", use_flash_attention_2=True, experts_implementation="eager",
        temperature=1.0,
    )  # fmt: skip
    assert model.config._experts_implementation == "eager"
    _, output = model(torch.arange(3, 23).view(2, 10), return_output=True)
    assert output.aux_loss > 0
    told = ["RewardModel knows no temperature: it changes nothing.", "flash_attention_2 needs a GPU: the attention of"]
    assert [one for one in told if one not in caplog.text] == []


def test_openrlhfs_function_takes_mean_and_deviation_off(tmp_path):
    model = tiny_classifier()
    model.config.mean, model.config.std = 0.5, 2.0
    model.save_pretrained(tmp_path)
    plain, normal = (
        get_llm_for_sequence_regression(str(tmp_path), "reward", param_dtype="fp32", normalize_reward=one)
        for one in (False, True)
    )
    rows = torch.arange(3, 23).view(2, 10)
    torch.testing.assert_close(normal(rows), (plain(rows) - 0.5) / 2.0)


def test_normal_rewards_need_mean_and_deviation(tmp_path):
    tiny_classifier().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"config.json names no mean and std of its rewards"):
        get_llm_for_sequence_regression(str(tmp_path), "reward", normalize_reward=True)


def test_a_critic_is_refused(tmp_path):
    with pytest.raises(UserError, match="model_type critic: reward models alone are made here"):
        get_llm_for_sequence_regression(str(tmp_path), "critic")
