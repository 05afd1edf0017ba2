"""DPOTrainer and RewardModelTrainer, called as scripts of OpenRLHF call them."""

from __future__ import annotations

import pytest

from tests.helpers.workbench import save_model, save_pairs, step_lines
from tests.trainer import pair_scripts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair_scripts")
    save_pairs(folder / "pairs.jsonl", 12)
    save_model(folder / "model")
    return folder


def test_dpo_trainer_trains_as_a_script_calls_it(one_rank, folder):
    small = one_rank.run(pair_scripts.train_dpo, folder=folder, beta=0.01)[0]
    large = one_rank.run(pair_scripts.train_dpo, folder=folder, beta=0.5)[0]
    assert [line["global_step"] for line in step_lines(folder / "out")][-1] == 3
    assert abs(large) > 5 * abs(small) > 0, "rewards are beta times the log-ratios"


def test_reward_model_trainer_trains_as_a_script_calls_it(one_rank, folder):
    metrics = one_rank.run(pair_scripts.train_reward_model, folder=folder)[0]
    assert metrics["margin"] == pytest.approx(metrics["chosen_reward"] - metrics["rejected_reward"])


def test_a_loader_that_knows_no_pairs_is_refused(one_rank, folder):
    assert "a loader that knows of no pairs" in one_rank.run(pair_scripts.told_of_a_foreign_loader, folder=folder)[0]
