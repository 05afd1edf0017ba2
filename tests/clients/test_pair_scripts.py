"""Scripts of OpenRLHF over pairs run unmodified, and train as our own command lines do, step by step."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.clients import script_pairs
from tests.clients.test_scripts import assert_same_run, steps
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
