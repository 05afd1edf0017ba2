"""A sample that makes the loss NaN: named, skipped on all ranks alike; too many stop the run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from openrlhf.batching import StepSchedule
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.exit_codes import EXIT_CODE_STOPPED
from openrlhf.tracking.metrics_file import read_records
from tests.faults.bench import SECONDS_FOR_A_RUN
from tests.faults.jobs import Job
from tests.faults.nan_loss import BAD_TOKENS
from tests.helpers.workbench import flags, save_model, save_rows

NUM_ROWS, BATCH_SIZE, SEED = 80, 4, 42
BAD_WINDOW = 18  # after the steps that the spike guard needs as its history
BAD_WORD = "zzz"
EMBEDDING = "model.embed_tokens.weight"


class PoisonedBench:
    """Rows of which one holds a token that no other holds, and models with that token's embedding replaced."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.rows = save_rows(folder / "rows.jsonl", NUM_ROWS)
        schedule = StepSchedule(NUM_ROWS, BATCH_SIZE, SEED, True)
        self.bad_row = int(schedule.window(0, BAD_WINDOW).rows[1])
        lines = self.rows.read_text().splitlines()
        row = json.loads(lines[self.bad_row])
        lines[self.bad_row] = json.dumps({**row, "question": f"{BAD_WORD} {row['question']}"})
        self.rows.write_text("\n".join(lines) + "\n")
        self._clean = save_model(folder / "clean", tie_word_embeddings=False)
        tokenizer = AutoTokenizer.from_pretrained(self._clean)
        others = {i for n, line in enumerate(lines) if n != self.bad_row for i in tokenizer(line).input_ids}
        self.bad_tokens = sorted(set(tokenizer(lines[self.bad_row]).input_ids) - others)
        assert self.bad_tokens, "the bad word must have a token of its own"

    def model(self, value: float) -> Path:
        """The model in which the bad token's embedding is that value."""
        folder = self._folder / f"poisoned-{value}"
        if not folder.exists():
            shutil.copytree(self._clean, folder)
            weights = load_file(folder / "model.safetensors")
            weights[EMBEDDING][self.bad_tokens] = value
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    def train(self, value: float, num_ranks: int, out: Path, **changes: Any) -> tuple[list[int] | None, str]:
        """Exit codes, and all that was said."""
        settings = dict(train__batch_size=BATCH_SIZE, ckpt__save_steps=5) | changes
        if math.isnan(value):  # weights that are not finite are refused at the start
            self.rows.with_name(BAD_TOKENS).write_text(" ".join(map(str, self.bad_tokens)))
            settings |= dict(train__loss="tests.faults.nan_loss:NanOfBadTokens")
        model = self._clean if math.isnan(value) else self.model(value)
        with Job(flags(model, self.rows, out, **settings), num_ranks, out / "log") as job:
            return job.wait(SECONDS_FOR_A_RUN), job.words_said()


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    return PoisonedBench(tmp_path_factory.mktemp("poisoned"))


@pytest.mark.parametrize(
    ("zero_stage", "dtype"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16"), (3, "fp32")], ids=lambda v: str(v)
)
def test_a_nan_is_named_and_skipped_on_all_ranks(poisoned, tmp_path, zero_stage, dtype):
    codes, said = poisoned.train(math.nan, 2, tmp_path, ds__zero_stage=zero_stage, ds__param_dtype=dtype)
    assert codes == [0, 0], said[-3000:]
    assert f"step {BAD_WINDOW + 1}: loss nan" in said
    assert "skipped on all ranks" in said
    assert f"rows.jsonl:{poisoned.bad_row + 1}" in said.split(f"step {BAD_WINDOW + 1}: loss nan")[1].split("\n  ")[1]
    records = read_records(tmp_path / "metrics.jsonl")
    assert [r["global_step"] for r in records if r["loss"] is None] == [BAD_WINDOW + 1]
    assert_only_the_poisoned_rows_are_nan(load_file(tmp_path / "model.safetensors"), poisoned.bad_tokens)


def test_after_several_in_a_row_the_run_stops_and_good_weights_are_saved(poisoned, tmp_path):
    codes, said = poisoned.train(math.nan, 2, tmp_path, train__max_nonfinite_steps_in_a_row=1)
    assert codes == [EXIT_CODE_STOPPED] * 2, said[-3000:]
    assert "--train.max_nonfinite_steps_in_a_row" in said
    newest, problems = CheckpointStore(tmp_path / "checkpoints").newest_whole()
    assert newest is not None
    assert (newest.name, problems) == ("global_step15", [])


def test_a_spike_is_skipped_and_said(poisoned, tmp_path):
    """A norm before the first layer divides by the size of an embedding: a tiny one makes a large gradient."""
    codes, said = poisoned.train(1e-4, 1, tmp_path, train__max_grad_norm_spike=3)
    assert codes == [0], said[-3000:]
    assert f"step {BAD_WINDOW + 1}: " in said, said[-3000:]
    assert "times the usual" in said


def assert_only_the_poisoned_rows_are_nan(weights: dict[str, torch.Tensor], bad_tokens: list[int]) -> None:
    for name, weight in weights.items():
        is_bad = ~torch.isfinite(weight)
        if name == EMBEDDING:
            is_bad[bad_tokens] = False
        assert not is_bad.any(), f"{name} was poisoned"
