"""Ranks of torchrun share the prompts: two processes leave the answers that one leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from openrlhf.rejection.generate import generate
from openrlhf.rejection.records import read_stats
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import tiny_tokenizer
from tests.rejection.stand_in import generate_config, stored

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]


def test_two_ranks_give_the_answers_of_one_process(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"{number} and {number}"} for number in range(9)]
    more = ("--generate.n", "3", "--generate.max_new_tokens", "12", "--generate.param_dtype", "fp32")
    model = str(tmp_path / "model")
    stats = generate(generate_config(tmp_path, rows, *more, model=model))
    given = [
        "--model.model_name_or_path", model, "--data.dataset", str(tmp_path / "prompts.jsonl"),
        "--generate.output", str(tmp_path / "ranks"), *more,
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [*TORCHRUN, "openrlhf.cli.generate", *given], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shards = {path.name for path in (tmp_path / "ranks").glob("rows-*.jsonl")}
    assert shards == {"rows-rank-0.jsonl", "rows-rank-1.jsonl"}
    key = lambda row: (row["prompt_id"], row["sample_index"])  # noqa: E731
    assert sorted(stored(tmp_path / "ranks"), key=key) == sorted(stored(tmp_path / "out"), key=key)
    assert read_stats(tmp_path / "ranks") == stats
