"""What the tests of this room share: a cache of their own, rows, and files of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from openrlhf.config import DataConfig, PairDataConfig
from openrlhf.datasets.pair_dataset import PairDataset, prepare_pair_dataset
from openrlhf.datasets.sft_dataset import SFTDataset, prepare_sft_dataset
from openrlhf.errors import UserError
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

Prepare = Callable[..., SFTDataset]
PreparePairs = Callable[..., PairDataset]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """prepare(spec, **settings of the data): its data set, on a cache of its own."""
    usual_tokenizer = tiny_tokenizer(CHATML)

    def call(
        spec: Any, tokenizer: Any = usual_tokenizer, seed: int = 42, pretrain_mode: bool = False, **given: Any
    ) -> SFTDataset:
        data = DataConfig(dataset=str(spec), **{"num_processors": 1, "cache_dir": str(tmp_path / "cache"), **given})
        return prepare_sft_dataset(data, tokenizer, pretrain_mode=pretrain_mode, seed=seed)

    return call


@pytest.fixture
def prepare_pairs(tmp_path: Path) -> PreparePairs:
    """prepare_pairs(rows, **settings of the data): their data set."""

    usual_tokenizer = tiny_tokenizer(CHATML)

    def call(rows: list[Any], tokenizer: Any = usual_tokenizer, **given: Any) -> PairDataset:
        file = write_jsonl(tmp_path / "pairs.jsonl", rows)
        settings = {"num_processors": 1, "cache_dir": str(tmp_path / "cache"), **given}
        return prepare_pair_dataset(PairDataConfig(dataset=str(file), **settings), tokenizer)

    return call


@pytest.fixture
def problems(prepare: Prepare) -> Callable[..., str]:
    """problems(spec, …): what the refusal says."""

    def call(spec: Any, **given: Any) -> str:
        with pytest.raises(UserError) as caught:
            prepare(spec, **given)
        return str(caught.value)

    return call


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Writes rows as JSONL; text stands as it is, so that it can be broken."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows with a prompt and a completion that tell their number."""
    return [{"prompt": f"Number {i}? ", "completion": f"It is {i}."} for i in range(start, start + count)]
