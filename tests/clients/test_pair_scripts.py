"""Scripts of OpenRLHF over pairs run unmodified, and train as our own command lines do, step by step."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from openrlhf.models import Actor
from openrlhf.strategy.script_names import ScriptNames
from tests.clients import script_pairs
from tests.clients.test_scripts import assert_same_run, steps
from tests.helpers.tiny_models import tiny_model
from tests.helpers.workbench import save_model, save_pairs


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair_clients")
    save_model(folder / "model")
    save_pairs(folder / "pairs.jsonl", 12)
    return folder


def test_a_script_of_a_reward_model_trains_as_our_command_line(one_rank, bench):
    one_rank.run(script_pairs.script, "rm", str(bench), "theirs_rm")
    one_rank.run(script_pairs.command_line, "rm", str(bench), "ours_rm")
    assert_same_run(bench / "theirs_rm", bench / "ours_rm")
    assert AutoModelForSequenceClassification.from_pretrained(bench / "theirs_rm").num_labels == 1
    assert json.loads((bench / "theirs_rm/config.json").read_text())["value_head_prefix"] == "score"


def test_a_script_of_dpo_trains_as_our_command_line(one_rank, bench):
    reference = f"{bench}/model"
    one_rank.run(script_pairs.script, "dpo", str(bench), "theirs_dpo", "--ref_pretrain", reference)
    one_rank.run(script_pairs.command_line, "dpo", str(bench), "ours_dpo")
    assert_same_run(bench / "theirs_dpo", bench / "ours_dpo")
    assert steps(bench / "theirs_dpo")[-1]["loss"] < steps(bench / "theirs_dpo")[0]["loss"]
    AutoModelForCausalLM.from_pretrained(bench / "theirs_dpo")


def test_the_model_of_transformers_is_found_in_what_a_script_has():
    model = tiny_model("qwen3")
    actor = Actor(model)
    engine = SimpleNamespace(module=actor.trainable_module)
    assert [ScriptNames()._unwrap_model(one) for one in (actor, engine, model)] == [model] * 3
