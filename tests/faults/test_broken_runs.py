"""The short form of the campaign, or with `FAULTS=1000` in the environment about that many faults on all layouts."""

from __future__ import annotations

import os
import random

import pytest

from tests.faults.bench import Layout
from tests.faults.broken_run import BrokenRun
from tests.faults.campaign import run_campaign

SEED = int(os.environ.get("SEED", "3"))


@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param([Layout(1, 1)], id="one rank, ZeRO 1", marks=pytest.mark.slow),
        pytest.param([Layout(2, 3)], id="two ranks, ZeRO 3", marks=pytest.mark.slow),
        pytest.param([Layout(1, 1, command="train_rm")], id="reward model", marks=pytest.mark.slow),
        pytest.param([Layout(2, 2, command="train_dpo")], id="preferences, two ranks", marks=pytest.mark.slow),
        pytest.param([Layout(2, 2), Layout(1, 1), Layout(2, 3, micro_batch_size=1)], id="layouts by turns"),
    ],
)
def test_a_run_broken_again_and_again_leaves_what_an_unbroken_one_leaves(bench, layouts, tmp_path):
    account = BrokenRun(bench, layouts, tmp_path / "run", random.Random(SEED)).run(num_faults=4, num_faults_at_end=1)
    assert account.problems == []
    assert account.num_kills > 0, f"nothing was killed: {account.kinds}"


@pytest.mark.skipif("FAULTS" not in os.environ, reason="the long form: set FAULTS to the number of faults")
@pytest.mark.timeout(24 * 3600)
def test_campaign(tmp_path):
    for campaign in run_campaign(tmp_path, int(os.environ["FAULTS"]), SEED):
        assert campaign.problems == []
