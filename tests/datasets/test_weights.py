"""Weights: a target weighs its row's weight times its message's; without weights nothing changes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf.config import DataConfig
from openrlhf.datasets.formats import FORMATS, find_format
from openrlhf.datasets.formats.columns import row_weight
from openrlhf.datasets.samples import BadRow, EncodedSample
from openrlhf.datasets.tokenization.encoder import SampleEncoder
from openrlhf.datasets.workers import ZERO_WEIGHT
from tests.datasets.conftest import pairs, write_jsonl
from tests.helpers.chat_templates import HERMES_TOOLS
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

TOKENIZER = tiny_tokenizer(CHATML)
ASK, SAY = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho, there."}


def encode(row: dict[str, Any], tokenizer: Any = TOKENIZER, **choices: Any) -> EncodedSample:
    data = DataConfig(**choices)
    content = FORMATS[find_format(row, data, "row 1")](row, data)
    return SampleEncoder(tokenizer, data).encode(content, row_weight(row, data))


@pytest.mark.parametrize(
    ("row", "choices"),
    [
        ({"messages": [ASK, SAY]}, {}),
        ({"prompt": "A?", "completion": " B"}, {}),
        ({"prompt": [ASK], "completion": [SAY]}, {}),
        ({"instruction": "A?", "output": " B"}, {}),
        ({"q": "A?", "a": " B"}, {"input_key": "q", "output_key": "a"}),
        ({"text": "One two."}, {}),
        ({"input_ids": [5, 6, 7, 8], "loss_mask": [0, 1, 1, 0]}, {}),
        ({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}, {}),
    ],
    ids=["messages", "pair", "pair of messages", "alpaca", "columns", "text", "loss_mask", "labels"],
)
def test_a_rows_weight_is_that_of_each_of_its_targets(row: dict, choices: dict):
    plain, weighted = encode(row, **choices), encode({**row, "weight": 0.25}, **choices)
    assert plain.loss_mask.dtype == np.uint8
    assert weighted.loss_mask.dtype == np.float32
    assert weighted.loss_mask.tolist() == (plain.loss_mask * 0.25).tolist()
    assert weighted.row_weight == 0.25


weights = st.sampled_from([0, 0.1, 0.5, 1, 1.0, 3])


@pytest.mark.parametrize("marked", [False, True], ids=["unmarked", "marked"])
@settings(max_examples=15, deadline=None)
@given(turns=st.lists(weights, min_size=1, max_size=4).filter(any), row=weights.filter(bool))
def test_a_token_weighs_its_rows_weight_times_its_turns(marked: bool, turns: list[float], row: float):
    """Each turn trained alone tells its tokens."""
    tokenizer = HERMES_TOOLS.tokenizer(marked)

    def encoded(by_turn: list[float], of_row: float) -> EncodedSample:
        messages = [each for weight in by_turn for each in (ASK, {**SAY, "weight": weight})]
        return encode({"messages": messages, "weight": of_row}, tokenizer, multiturn=True)

    expected = np.zeros(len(encoded(turns, row).input_ids))
    for turn, weight in enumerate(turns):
        alone = encoded([float(other == turn) for other in range(len(turns))], 1)
        expected += alone.loss_mask * weight * row
    np.testing.assert_allclose(encoded(turns, row).loss_mask, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ("0.5", "holds text where a number belongs"),
        (True, "holds true/false where a number belongs"),
        ([1], "holds a list where a number belongs"),
        (-1, "is -1: give 0"),
        (float("nan"), "is nan: give 0"),
        (float("inf"), "is inf: give 0"),
        (1e-30, "is 1e-30: give 0"),
        (10**400, "give 0"),
    ],
)
def test_a_weight_that_is_none_is_refused(weight: Any, words: str):
    for row, where in (
        ({"messages": [ASK, SAY], "weight": weight}, "column 'weight'"),
        ({"messages": [ASK, {**SAY, "weight": weight}]}, "message 2: its weight"),
    ):
        with pytest.raises(BadRow) as caught:
            encode(row)
        assert str(caught.value).startswith(where)
        assert words in str(caught.value)


def test_the_row_of_a_bad_weight_is_named(tmp_path, problems):
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs(2), {**pairs(1)[0], "weight": "much"}])
    assert f"{path}:3: column 'weight' holds text" in problems(path)


def test_null_means_one():
    row = {"messages": [ASK, {**SAY, "weight": None}], "weight": None}
    assert encode(row).loss_mask.dtype == np.uint8


def test_a_column_of_content_is_no_weight(tmp_path, prepare):
    row = {"animal": "A whale weighs ", "weight": "100 tons."}
    assert encode(row, input_key="animal", output_key="weight").loss_mask.dtype == np.uint8


def test_turns_cannot_weigh_where_the_text_is_trained_as_a_whole():
    with pytest.raises(BadRow, match="message 2 has the weight 0.5, but with --data.targets everything"):
        encode({"messages": [ASK, {**SAY, "weight": 0.5}]}, targets="everything")
    for silent in ({"weight": 0}, {"train": False}):
        with pytest.raises(BadRow, match="message 2 has the weight 0 .* but with --data.targets everything"):
            encode({"messages": [ASK, {**SAY, **silent}]}, targets="everything")
    assert encode({"messages": [ASK, SAY], "weight": 0.5}, targets="everything").loss_mask[0] == 0.5


def test_rows_of_weight_0_are_left_out_and_counted(tmp_path, prepare):
    rows = [*pairs(2), {**pairs(1)[0], "weight": 0}, {**pairs(1)[0], "weight": 0.0}]
    found = prepare(write_jsonl(tmp_path / "a.jsonl", rows))
    assert (len(found), found.report.left_out) == (2, {ZERO_WEIGHT: 2})
    assert found[0][2].dtype == torch.int64


def test_a_conversation_of_turns_of_weight_0_is_left_out(tmp_path, prepare):
    silent = {"messages": [ASK, {**SAY, "weight": 0}]}
    found = prepare(write_jsonl(tmp_path / "a.jsonl", [{"messages": [ASK, SAY]}, silent]))
    assert (len(found), found.report.left_out) == (1, {"no assistant turn to train": 1})


@pytest.mark.parametrize("num_processors", [1, 2])
def test_one_weighted_row_makes_every_mask_a_float(num_processors: int, tmp_path, prepare):
    rows = pairs(1500)
    plain = prepare(write_jsonl(tmp_path / "plain.jsonl", rows))
    rows[1200] = {**rows[1200], "weight": 0.5}
    found = prepare(write_jsonl(tmp_path / "a.jsonl", rows), num_processors=num_processors)
    assert {found[i][2].dtype for i in range(len(found))} == {torch.float32}
    assert [found.row_weight(i) for i in (0, 1199, 1200, 1201)] == [1, 1, 0.5, 1]
    for i in (0, 1199, 1200, 1201):
        assert found[i][2].tolist() == (plain[i][2] * (0.5 if i == 1200 else 1)).tolist()
        assert found.num_target_tokens[i] == plain.num_target_tokens[i]
    assert found.report.num_weighted == 1
    assert "samples weighted other than 1: 1" in found.report.lines()


def test_a_batch_of_weights_is_padded_with_0(tmp_path, prepare):
    rows = [{"prompt": "A?", "completion": " B", "weight": 0.5}, *pairs(1)]
    found = prepare(write_jsonl(tmp_path / "a.jsonl", rows))
    ids, attention, mask = found.collate_fn([found[0], found[1]])
    assert (mask.dtype, attention.dtype, ids.dtype) == (torch.float32, torch.int64, torch.int64)
    assert mask[0].sum() == 0.5 * found.num_target_tokens[0]
    assert mask[0][len(found[0][0]) :].tolist() == [0] * (mask.shape[1] - len(found[0][0]))


def test_a_cut_keeps_the_weights_before_it():
    messages = [ASK, {**SAY, "weight": 2}, ASK, {**SAY, "weight": 3}]
    whole = encode({"messages": messages}, multiturn=True)
    cut = encode({"messages": messages}, multiturn=True, overlong="truncate", max_len=len(whole.input_ids) - 4)
    assert cut.loss_mask.tolist() == [*whole.loss_mask[: len(cut.loss_mask) - 1].tolist(), 0]


def test_weights_in_parquet_count_as_those_in_jsonl(tmp_path, prepare):
    import pyarrow as pa
    import pyarrow.parquet

    rows = [{"messages": [ASK, {**SAY, "weight": 0.5}], "weight": 2}, {"messages": [ASK, SAY], "weight": None}]
    lines = prepare(write_jsonl(tmp_path / "a.jsonl", rows))
    pyarrow.parquet.write_table(pa.Table.from_pylist(json.loads(json.dumps(rows))), tmp_path / "a.parquet")
    table = prepare(tmp_path / "a.parquet")
    assert [table[i][2].tolist() for i in range(2)] == [lines[i][2].tolist() for i in range(2)]
