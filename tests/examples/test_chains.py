"""The steps of preferences.sh and rejection_sampling.sh with their own files, one after the other, at a small size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.cases import run

SMALL = ["--train.max_steps", "3", "--ckpt.disable_ds", "--data.num_processors", "1", "--data.max_samples", "200"]


def run_in(folder: Path, argv: list[str], command: str) -> None:
    """A command in a rank of a pool, which goes back to where it was."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        run(argv, command=command)
    finally:
        os.chdir(before)


@pytest.fixture
def begun(quickstart_data, example, examples, one_rank, monkeypatch):
    """A folder with the quickstart's data and a model trained for three steps by an example's weak.toml."""
    monkeypatch.chdir(quickstart_data)
    example("quickstart/make_model").main(Path("train.jsonl"), Path("untrained"))

    def begin(of: str) -> Path:
        one_rank.run(run_in, quickstart_data, ["@", str(examples / of / "weak.toml"), *SMALL], "train_sft")
        return quickstart_data

    return begin


def test_preferences_from_data_to_figures(begun, example, examples, one_rank, monkeypatch, capsys):
    folder = begun("preferences")
    make_pairs = example("preferences/make_pairs")
    monkeypatch.setattr(make_pairs, "NUM_QUESTIONS", 60)
    make_pairs.main(Path("weak"))
    for command, file in (("train_rm", "reward"), ("train_dpo", "dpo")):
        one_rank.run(run_in, folder, ["@", str(examples / "preferences" / f"{file}.toml"), *SMALL], command)
    status = _load(examples / "preferences" / "check.py").main(
        Path("weak"), Path("preferred"), Path("reward"), Path("held_out.jsonl")
    )
    shown = capsys.readouterr().out
    assert "the right answer gets the higher reward in" in shown
    assert (status, "missed: DPO gains less than 15 points" in shown) == (1, True)


def test_rejection_sampling_from_questions_to_figures(begun, example, examples):
    begun_in = example("rejection/make_prompts")
    begun_in.main(Path("."))
    folder = begun("rejection")
    shutil.copy(examples / "rejection" / "reward.py", folder)
    few = ["--data.max_samples", "12", "--eval.max_samples", "6", "--iterate.iterations", "1", "--generate.n", "2"]
    easy = [
        "--select.min_reward",
        "0",
        "--select.keep_truncated",
        "--generate.max_new_tokens",
        "4",
        "--train.max_steps",
        "1",
    ]
    words = [sys.executable, "-m", "openrlhf.cli.rejection_sampling", "@", str(examples / "rejection" / "recipe.toml")]
    done = subprocess.run([*words, *few, *easy], cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(json.loads((folder / "rejection/stats.json").read_text())["iterations"]) == 2
    with pytest.raises(SystemExit, match="missed: the weak model was to be 20% to 50% right"):
        _load(examples / "rejection" / "check.py").main(folder / "rejection" / "stats.json")


def _load(file: Path):
    """Two examples have a check.py: each is loaded under a name of its own."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"{file.parent.name}_check", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
