"""An exported reward model opens in transformers, and gives the same values there, however rows are padded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from openrlhf.checkpoint.export import export_model
from openrlhf.checkpoint.rehearsal import try_export
from openrlhf.errors import UserError
from openrlhf.models import RewardModel, note_reward_statistics
from openrlhf.models.reward_statistics import forget_reward_statistics
from openrlhf.run.merge import merge_adapters
from openrlhf.strategy import DeepspeedStrategy
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import tiny_tokenizer
from tests.objectives import reward_cases

TEXTS = ["Sure.", "The sum of three and four is seven.", "Can I get a coffee with oat milk, please?"]


def answers(tokenizer) -> list[list[int]]:
    """Texts with their end token; the first one has the pad token of its tokenizer inside, too."""
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    return [[*ids[0][:1], tokenizer.pad_token_id, *ids[0][1:]], *ids[1:]]


def our_values(model: RewardModel, ids: list[list[int]]) -> list[float]:
    values = []
    for one in ids:
        places = torch.arange(len(one))
        with torch.no_grad():
            scores = model.score_sequences(
                last_index=places[-1:], input_ids=torch.tensor([one]), position_ids=places[None]
            )
        values.append(scores.values.item())
    return values


def their_values(folder: Path, ids: list[list[int]], side: str) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    with torch.no_grad():
        return model(**tokenizer.pad({"input_ids": ids}, return_tensors="pt")).logits[:, 0].tolist()


@pytest.mark.parametrize("pad_is_eos", [False, True], ids=["a pad token", "the end token pads"])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma3"])
def test_transformers_reads_the_same_values(kind, pad_is_eos, tmp_path):
    tiny_model(kind).save_pretrained(tmp_path / "base")
    model, tokenizer = (
        RewardModel(str(tmp_path / "base"), param_dtype="fp32").eval(),
        tiny_tokenizer(pad_is_eos=pad_is_eos),
    )
    ids = answers(tokenizer)
    export_model(model.model, tokenizer, tmp_path / "out")
    for side in ("right", "left"):
        assert their_values(tmp_path / "out", ids, side) == pytest.approx(our_values(model, ids), abs=1e-6), side


def test_the_export_is_rehearsed_and_says_what_pads(tmp_path):
    model = reward_cases.tiny_classifier()
    (note,) = try_export(model, tiny_tokenizer(pad_is_eos=True), tmp_path)
    assert note == "answers end with the pad token, <|endoftext|>: the exported tokenizer pads with <|pad|>."
    assert try_export(model, tiny_tokenizer(), tmp_path) == []
    assert try_export(tiny_model("llama"), tiny_tokenizer(pad_is_eos=True), tmp_path) == []


def test_a_pad_token_without_an_embedding_is_replaced(tmp_path):
    model, tokenizer = reward_cases.tiny_classifier(), tiny_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(model.config.vocab_size - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    (note,) = try_export(model, tokenizer, tmp_path)
    assert note == "the model has no embedding for the pad token, <new>: the exported tokenizer pads with <|pad|>."
    export_model(model, tokenizer, tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.pad_token_id == AutoTokenizer.from_pretrained(tmp_path).pad_token_id == 1


def test_without_another_special_token_transformers_takes_one_answer_at_a_time(tmp_path):
    model, tokenizer = reward_cases.tiny_classifier().eval(), tiny_tokenizer(pad_is_eos=True)
    model.config.vocab_size = 1  # no embedding for the others
    (note,) = try_export(model, tokenizer, tmp_path)
    assert "there is no other special token" in note


def test_mean_and_deviation_of_the_rewards_stand_in_the_config(tmp_path):
    model = RewardModel(reward_cases.tiny_classifier())
    note_reward_statistics(model.config, 0.25, 1.5)
    export_model(model.model, tiny_tokenizer(), tmp_path)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert (config.mean, config.std) == (0.25, 1.5)
    note_reward_statistics(model.config, 0.5, float("nan"))
    export_model(model.model, tiny_tokenizer(), tmp_path)
    assert not {"mean", "std"} & json.loads((tmp_path / "config.json").read_text()).keys()


@pytest.mark.parametrize("measured", [{"mean": 0.25, "std": 1.5}, {}], ids=["evaluated", "not evaluated"])
def test_a_merged_model_has_mean_and_deviation_of_the_adapted_one(measured, tmp_path):
    """The base is a reward model with numbers of its own."""
    base = RewardModel(reward_cases.tiny_classifier())
    note_reward_statistics(base.config, 7.0, 8.0)
    export_model(base.model, tiny_tokenizer(), tmp_path / "base")
    adapted = RewardModel(str(tmp_path / "base"), param_dtype="fp32", lora_rank=2)
    forget_reward_statistics(adapted.config)
    if measured:
        note_reward_statistics(adapted.config, **measured)
    export_model(adapted.model, tiny_tokenizer(), tmp_path / "adapter")
    merge_adapters(str(tmp_path / "base"), [str(tmp_path / "adapter")], str(tmp_path / "merged"))
    found = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert {name: found[name] for name in ("mean", "std") if name in found} == measured


def test_an_export_is_loaded_into_another_model(tmp_path):
    model, other = (RewardModel(reward_cases.tiny_classifier()) for _ in range(2))
    torch.nn.init.ones_(model.model.score.weight)
    export_model(model.model, None, tmp_path)
    DeepspeedStrategy().load_model(other, str(tmp_path))
    assert torch.equal(other.model.score.weight, model.model.score.weight)


def test_weights_that_an_export_lacks_are_not_made_up(tmp_path, capsys):
    model, other = (RewardModel(reward_cases.tiny_classifier()) for _ in range(2))
    export_model(model.model, None, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    own = torch.nn.init.ones_(other.model.score.weight).detach().clone()
    save_file({name: one for name, one in weights.items() if name != "score.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks weights of the model: score\.weight"):
        DeepspeedStrategy().load_model(other, str(tmp_path))
    DeepspeedStrategy().load_model(other, str(tmp_path), strict=False)
    assert torch.equal(other.model.score.weight, own)
    assert "score.weight for this model, which keeps its own" in capsys.readouterr().out
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="bytes instead of"):
        DeepspeedStrategy().load_model(other, str(tmp_path))


def test_a_model_in_parts_is_exported_whole(two_ranks, one_rank, tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path / "base")
    for ranks, zero_stage in ((one_rank, 0), (two_ranks, 3)):
        ranks.run(
            reward_cases.trained_and_exported, str(tmp_path / "base"), str(tmp_path / str(zero_stage)), zero_stage, 0
        )
    one, other = (AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict() for name in "03")
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_adapters_are_exported_with_their_head(two_ranks, tmp_path, zero_stage):
    tiny_model("qwen3").save_pretrained(tmp_path / "base")
    two_ranks.run(reward_cases.trained_and_exported, str(tmp_path / "base"), str(tmp_path / "out"), zero_stage, 4)
    opened = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1)
    fresh = RewardModel(str(tmp_path / "base"), param_dtype="fp32").model.score.weight
    trained = opened.base_model.model.score.modules_to_save["default"].weight
    assert 1e-5 < (trained - fresh).abs().max() < 1e-2  # one step from the same start
