"""Rows under `--data.format trl`: the text that TRL would train, and the columns that it does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openrlhf.datasets.formats.trl import MESSAGES_WEIGH_THE_SAME, _remark
from tests.datasets.conftest import Prepare, write_jsonl
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

ASK, SAY = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}
FROM_VALUE = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]
TEXT, PROSE = {"text": "oat milk"}, {"prose": "rye bread"}
# what is trained of them; the first token of a text is no target
TURNS, IS_TEXT, IS_PROSE = (
    "Ho.<|im_end|>",
    "at milk<|endoftext|>",
    "ye bread<|endoftext|>",
)  # the first token is no target
TOKENIZER = tiny_tokenizer(CHATML)


def trained(samples: Any) -> str:
    ids, _, mask = samples[0]
    return TOKENIZER.decode(ids[1:][mask[:-1] > 0])


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        (TEXT | {"instruction": "A?", "input": "", "output": "B"}, {}, IS_TEXT),
        (PROSE | {"instruction": "A?", "output": "B"}, {"input_key": "prose"}, IS_PROSE),
        ({"instruction": "A?", "output": "B"}, {}, "B<|endoftext|>"),
        (TEXT | {"messages": [ASK, SAY]}, {}, TURNS),
        (PROSE | {"messages": [ASK, SAY]}, {"input_key": "prose"}, TURNS),
        (TEXT | {"conversations": FROM_VALUE}, {}, TURNS),
        (TEXT | {"conversations": [ASK, SAY]}, {}, IS_TEXT),
        ({"conversations": [ASK, SAY]}, {}, TURNS),
        ({"turns": [ASK, SAY]}, {"input_key": "turns"}, TURNS),
        (TEXT | {"prompt": "A?", "completion": " B"}, {}, " B<|endoftext|>"),
        (TEXT | {"q": "A?", "a": " B"}, {"input_key": "q", "output_key": "a"}, " B<|endoftext|>"),
        (TEXT | {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {}, TOKENIZER.decode([6, 7])),
    ],
)
def test_a_row_is_what_it_is_to_trl(
    tmp_path: Path, prepare: Prepare, row: dict[str, Any], settings: dict[str, Any], expected: str
) -> None:
    samples = prepare(write_jsonl(tmp_path / "rows.jsonl", [row]), format="trl", targets="completion", **settings)
    assert trained(samples) == expected


@pytest.mark.parametrize(
    "row",
    [
        TEXT,
        {"messages": [ASK, SAY]},
        {"prompt": "A?", "completion": " B"},
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    ],
)
def test_weight_and_system_are_not_read_and_counted(tmp_path: Path, prepare: Prepare, row: dict[str, Any]) -> None:
    """Nor what a message says of its weight."""
    weighed = [row | {"weight": n, "system": "Be kind."} for n in (0, 2)]
    if "messages" in row:
        weighed[0]["messages"] = [ASK, SAY | {"weight": "heavy"}]  # a name that means something else there
        weighed[1]["messages"] = [ASK | {"train": "no"}, SAY | {"weight": 0, "train": False}]
    rows = write_jsonl(tmp_path / "rows.jsonl", weighed)
    samples, plain = (
        prepare(file, format="trl", targets="completion")
        for file in (rows, write_jsonl(tmp_path / "plain.jsonl", [row, row]))
    )
    assert len(samples) == 2
    for number in (0, 1):
        assert all((one == other).all() for one, other in zip(samples[number], plain[number], strict=True))
    assert {_remark(name): 2 for name in ("weight", "system")}.items() <= samples.report.remarks.items()
    assert samples.report.remarks.get(MESSAGES_WEIGH_THE_SAME, 0) == (2 if "messages" in row else 0)
