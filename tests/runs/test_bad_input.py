"""Bad input: one clear message, exit code 2, nothing half-written where the model should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.workbench import flags, save_model, save_rows
from tests.runs.cases import run_as_command


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_input")
    save_model(folder / "model")
    save_model(folder / "short_model", max_position_embeddings=6)
    save_rows(folder / "rows.jsonl", 6)
    (folder / "no_model").mkdir()
    (folder / "empty.jsonl").touch()
    (folder / "broken.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a", \n', encoding="utf-8")
    (folder / "numbers.jsonl").write_text('{"question": "a", "answer": 7}\n', encoding="utf-8")
    (folder / "unanswered.jsonl").write_text('{"question": "a", "answer": ""}\n', encoding="utf-8")
    turns = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    (folder / "chat.jsonl").write_text(json.dumps(turns) + "\n", encoding="utf-8")
    return folder


CHAT = dict(data__input_key="messages", data__output_key=None, data__apply_chat_template=True)
CASES = {
    "misspelt flag": (dict(train__batch_sise=4), "--train.batch_sise is unknown. Did you mean --train.batch_size?"),
    "missing column": (dict(data__input_key="prompt"), "has no column 'prompt'; it has 'question', 'answer'"),
    "no such file": (dict(data__dataset="{bench}/nowhere.jsonl"), "nowhere.jsonl"),
    "broken JSON": (dict(data__dataset="{bench}/broken.jsonl"), "broken.jsonl:2"),
    "empty file": (dict(data__dataset="{bench}/empty.jsonl"), "empty.jsonl is empty"),
    "wrong type": (dict(data__dataset="{bench}/numbers.jsonl"), "numbers.jsonl:1"),
    "empty answer": (
        dict(data__dataset="{bench}/unanswered.jsonl"),
        "unanswered.jsonl:1: the answer in column 'answer' is empty",
    ),
    "no trainable row": (dict(data__max_len=2), "None of the 6 rows can be trained"),
    "max_len too small": (dict(data__max_len=2), "--data.max_len"),
    "folder without model": (dict(model__model_name_or_path="{bench}/no_model"), "no_model"),
    "no chat template": (
        CHAT | dict(data__dataset="{bench}/chat.jsonl", data__tokenizer_chat_template="{bench}/nowhere.jinja"),
        "nowhere.jinja",
    ),
    "template that raises": (
        CHAT
        | dict(data__dataset="{bench}/chat.jsonl", data__tokenizer_chat_template="{{{{ raise_exception('no!') }}}}"),
        "no!",
    ),
    "ring without packing": (dict(ds__ring_attn_size=2), "--ds.ring_attn_size"),
    "sample longer than the model's positions": (
        dict(model__model_name_or_path="{bench}/short_model"),
        "positions (max_position_embeddings in its config.json): give --data.max_len 6",
    ),
    "back end that is not installed": (dict(ds__attn_implementation="flash_attention_2"), "pip install flash-attn"),
    "zero stage 4": (dict(ds__zero_stage=4), "--ds.zero_stage"),
    "unknown back end": (dict(ds__attn_implementation="flash_attention_9"), "flash_attention_9"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_message_and_exit_code_2(one_rank, bench, name):
    changes, told = CASES[name]
    out = bench / f"out of {name}"
    changes = {flag: value.format(bench=bench) if isinstance(value, str) else value for flag, value in changes.items()}
    ((code, message),) = one_rank.run(run_as_command, flags(bench / "model", bench / "rows.jsonl", out, **changes))
    assert (code, told in message) == (2, True), f"exit code {code}, message: {message}"
    assert "Traceback" not in message
    assert not out.exists() or not any(out.iterdir())


def test_all_problems_of_a_configuration_at_once(one_rank, bench):
    changes = dict(ds__zero_stage=4, train__batch_sise=4, adam__lr="fast", data__dataset=bench / "nowhere.jsonl")
    arguments = flags(bench / "model", bench / "rows.jsonl", bench / "out", **changes)
    ((code, message),) = one_rank.run(run_as_command, arguments)
    assert code == 2
    for flag in ("--ds.zero_stage", "--train.batch_sise", "--adam.lr", "nowhere.jsonl"):
        assert flag in message


def test_fewer_samples_a_step_than_ranks(two_ranks, bench):
    arguments = flags(bench / "model", bench / "rows.jsonl", bench / "out", train__batch_size=1)
    codes_and_messages = two_ranks.run(run_as_command, arguments)
    assert [code for code, _ in codes_and_messages] == [2, 2]
    said = [message for _, message in codes_and_messages if message]
    assert len(said) == 1, "the rank that is first speaks for all"
    assert "--train.batch_size" in said[0]


def test_an_output_folder_below_a_file(one_rank, bench):
    arguments = flags(bench / "model", bench / "rows.jsonl", bench / "rows.jsonl" / "out")
    ((code, message),) = one_rank.run(run_as_command, arguments)
    assert code == 2
    assert "--ckpt.output_dir" in message


def test_a_model_that_was_there_survives(one_rank, bench):
    """A run that fails early leaves the model of an earlier run as it was."""
    out: Path = save_model(bench / "earlier")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    changes = dict(data__input_key="prompt")
    one_rank.run(run_as_command, flags(bench / "model", bench / "rows.jsonl", out, **changes))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
