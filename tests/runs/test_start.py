"""What a training command does before its run begins: modules are loaded without a search for garbage."""

from __future__ import annotations

import gc
import importlib

import pytest

from tests.helpers.workbench import flags, save_model, save_rows
from tests.runs.cases import run_with_more_flags_on_rank_1

COMMANDS = {"train_sft": "sft_run.SFTRun", "train_dpo": "dpo_run.DPORun", "train_rm": "rm_run.RMRun"}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_modules_made_is_left_out_of_later_searches(command, tmp_path, monkeypatch):
    """And Python searches again from then on."""
    seen = []
    gc.unfreeze()
    module, name = COMMANDS[command].split(".")
    run = getattr(importlib.import_module(f"openrlhf.run.{module}"), name)
    monkeypatch.setattr(run, "train", lambda config: seen.append((gc.isenabled(), gc.get_freeze_count() > 100_000)))
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    try:
        main = importlib.import_module(f"openrlhf.cli.{command}").main
        main(["--model.model_name_or_path", "model", "--data.dataset", str(rows)])
    finally:
        gc.unfreeze()
    assert seen == [(True, True)], "(Python searches again, what was made is left out)"


def test_ranks_that_save_otherwise_are_named_before_they_look_at_a_folder(two_ranks, tmp_path):
    save_model(tmp_path / "model")
    save_rows(tmp_path / "rows.jsonl", 8)
    argv = flags(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "out")
    codes, said = zip(*two_ranks.run(run_with_more_flags_on_rank_1, argv, ["--ckpt.disable_ds"]), strict=True)
    assert codes == (2, 2)
    told = "".join(said)  # by the first rank that comes to it
    assert "--ckpt.disable_ds: False on rank 0, True on rank 1" in told
