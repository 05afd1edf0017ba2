"""Pairs from answers with verdicts: which ones, how they weigh, and the real ones prepared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openrlhf.config import PairDataConfig
from openrlhf.datasets import PairDataset, prepare_pair_dataset
from tests.helpers.tokenizers import tiny_tokenizer

VERDICTS = Path(__file__).parents[2] / ".." / "shared" / "data" / "coffee" / "reward.jsonl"
TOKENIZER = tiny_tokenizer()


def verdicts(context: str, good: str, bad: str) -> list[dict]:
    """An answer for each letter."""
    return [
        {"context": context, "generation": answer, "reward": reward}
        for answers, reward in ((good, 1.0), (bad, 0.0))
        for answer in answers
    ]


def prepared(path: Path, cache: Path) -> PairDataset:
    return prepare_pair_dataset(PairDataConfig(dataset=str(path), cache_dir=str(cache), max_len=8192), TOKENIZER)


def test_each_good_answer_stands_beside_each_bad_one(example):
    rows = verdicts("q", "abaz", "xyyz") + verdicts("all good", "ab", "") + verdicts("r", "c", "d")
    first, second = example("pairs_from_verdicts").pairs_of_contexts(rows)
    # z was judged both ways.
    assert [(row["chosen"], row["rejected"]) for row in first] == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    assert [row["weight"] for row in first] == [0.25] * 4
    assert second == [{"prompt": "r\n", "weight": 1.0, "chosen": "c", "rejected": "d"}]


def test_one_verdict_alone_is_told(example, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in verdicts("q", "ab", "")))
    with pytest.raises(SystemExit, match="no context has both a good answer and a bad one"):
        example("pairs_from_verdicts").main(tmp_path / "rows.jsonl", tmp_path / "out")


@pytest.mark.skipif(not VERDICTS.exists(), reason="the real data (../shared/data) is not here")
def test_real_verdicts_become_pairs(example, tmp_path: Path, capsys):
    example("pairs_from_verdicts").main(VERDICTS, tmp_path)
    counts = capsys.readouterr().out.splitlines()
    train, test = (prepared(tmp_path / f"{name}.jsonl", tmp_path / "cache") for name in ("train", "test"))
    assert (train.report.num_bad_rows, train.report.left_out, test.report.left_out) == (0, {}, {})
    assert counts == [
        f"train.jsonl: {len(train)} pairs of 196 contexts",
        f"test.jsonl: {len(test)} pairs of 22 contexts",
    ]
    units = [train.unit(row) for row in range(len(train))] + [test.unit(row) for row in range(len(test))]
    assert sum(unit.weight for unit in units) == pytest.approx(196 + 22, rel=1e-6), "a context weighs 1"
    prompts = [
        {json.loads(line)["prompt"] for line in (tmp_path / f"{name}.jsonl").open()} for name in ("train", "test")
    ]
    assert not prompts[0] & prompts[1]
    for sequence in units[0].sequences:
        said = TOKENIZER.decode(sequence.input_ids[1:][sequence.loss_mask[:-1] > 0])
        assert json.loads(said.removesuffix(TOKENIZER.eos_token))["role"] == "agent"
