"""Under every template family: the decoded targets are what the assistant says and its turn end, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openrlhf.config import DataConfig
from openrlhf.datasets.formats import FORMATS
from openrlhf.datasets.samples import EncodedSample
from openrlhf.datasets.tokenization.encoder import SampleEncoder
from tests.helpers.chat_templates import FAMILIES, UNMARKED_ONLY, Family

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
ALL_TURNS = DataConfig(multiturn=True, max_len=1_000_000)
LAST_TURN = DataConfig(max_len=1_000_000)

needs_shared_data = pytest.mark.skipif(not SHARED.exists(), reason="the real data (../shared/data) is not here")
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
each_marking = pytest.mark.parametrize("marked", [False, True], ids=["unmarked", "marked"])

CHAT = [
    {"role": "user", "content": "Hi, what do you have?"},
    {"role": "assistant", "content": "Coffee, and tea."},
    {"role": "user", "content": "Coffee, and tea."},
    {"role": "assistant", "content": "Großer Kaffee. <b>Ça</b> coûte 3€ 🙂"},
]


def encode(row: dict, tokenizer, settings: DataConfig) -> EncodedSample:
    return SampleEncoder(tokenizer, settings).encode(FORMATS["messages"](row, settings))


def trained_text(sample: EncodedSample, tokenizer) -> str:
    targets = [int(token) for token, judged in zip(sample.input_ids[1:], sample.loss_mask[:-1], strict=True) if judged]
    return tokenizer.decode(targets, skip_special_tokens=False)


def expected_text(family: Family, messages: list[dict], last_only: bool = False) -> str:
    last_user = max(index for index, message in enumerate(messages) if message["role"] == "user")
    turns = [(index, message) for index, message in enumerate(messages) if message["role"] == "assistant"]
    return "".join(family.said(message, index < last_user) for index, message in (turns[-1:] if last_only else turns))


@each_family
@each_marking
def test_targets_are_what_the_assistant_says(family: Family, marked: bool):
    tokenizer = family.tokenizer(marked)
    sample = encode({"messages": CHAT}, tokenizer, ALL_TURNS)
    assert trained_text(sample, tokenizer) == expected_text(family, CHAT)


@each_family
@each_marking
def test_last_turn_alone(family: Family, marked: bool):
    tokenizer = family.tokenizer(marked)
    sample = encode({"messages": CHAT}, tokenizer, LAST_TURN)
    assert trained_text(sample, tokenizer) == expected_text(family, CHAT, last_only=True)


@pytest.mark.parametrize("family", UNMARKED_ONLY, ids=lambda family: family.name)
@pytest.mark.parametrize("settings", [ALL_TURNS, LAST_TURN], ids=["all turns", "last turn"])
def test_families_without_marks(family: Family, settings: DataConfig):
    tokenizer = family.tokenizer(marked=False)
    sample = encode({"messages": CHAT}, tokenizer, settings)
    assert trained_text(sample, tokenizer) == expected_text(family, CHAT, last_only=settings is LAST_TURN)


@each_family
@each_marking
def test_ids_are_those_of_the_whole_text_tokenized_once(family: Family, marked: bool):
    tokenizer = family.tokenizer(marked)
    sample = encode({"messages": CHAT}, tokenizer, ALL_TURNS)
    assert sample.input_ids.tolist() == tokenizer.apply_chat_template(CHAT, return_dict=False)


@each_family
@each_marking
def test_system_turn_is_no_target(family: Family, marked: bool):
    if not family.system:
        pytest.skip(f"{family.name} refuses system turns: see test_refusals.py")
    messages = [{"role": "system", "content": "Be brief."}, *CHAT]
    tokenizer = family.tokenizer(marked)
    sample = encode({"messages": messages}, tokenizer, ALL_TURNS)
    assert trained_text(sample, tokenizer) == expected_text(family, messages)


def rows_of(name: str) -> list[dict]:
    with (SHARED / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@needs_shared_data
@each_family
def test_real_conversations(family: Family):
    rows = rows_of("coffee/chat_test.jsonl") + rows_of("coffee/chat_train.jsonl")[:100]
    check_rows(family, [row for row in rows if alternates(row["messages"])])


@needs_shared_data
@pytest.mark.parametrize("family", [family for family in FAMILIES if family.tools], ids=lambda family: family.name)
@pytest.mark.parametrize("name", ["coffee/tools_test.jsonl", "bfcl/tools.jsonl"])
def test_real_tool_calls(family: Family, name: str):
    rows = [row for row in rows_of(name) if family.name != "channels_through_macros" or one_call_each(row)]
    check_rows(family, rows[:120])


def check_rows(family: Family, rows: list[dict]) -> None:
    """Marked and unmarked templates give the same ids and masks, and the trained text is the expected one."""
    assert rows
    tokenizers = [family.tokenizer(marked) for marked in (False, True)]
    encoders = [SampleEncoder(tokenizer, ALL_TURNS) for tokenizer in tokenizers]
    for row in rows:
        plain, marked = (encoder.encode(FORMATS["messages"](row, ALL_TURNS)) for encoder in encoders)
        assert plain.input_ids.tolist() == marked.input_ids.tolist(), row["id"]
        assert plain.loss_mask.tolist() == marked.loss_mask.tolist(), row["id"]
        assert trained_text(plain, tokenizers[0]) == expected_text(family, row["messages"]), row["id"]


def alternates(messages: list[dict]) -> bool:
    roles = [message["role"] for message in messages]
    return roles == ["user", "assistant"] * (len(roles) // 2)


def one_call_each(row: dict) -> bool:
    return all(len(message.get("tool_calls", [])) <= 1 for message in row["messages"])
