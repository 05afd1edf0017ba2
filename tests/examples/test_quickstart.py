"""The quickstart's parts: the data are right, nothing leaks, the model knows how a turn ends."""

from __future__ import annotations

import json
import re

import pytest

from openrlhf.config import SFTConfig, parse_config

ONES = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()  # noqa: SIM905
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905


def number_of(words):
    """Words to number, written without the generator's own functions."""
    value = 0
    for word in words.split("-"):
        if word in TENS:
            value += 20 + 10 * TENS.index(word)
        else:
            value += (ONES + TEENS).index(word)
    return value


def asked(question):
    """The operation and its two numbers."""
    pattern = r"(?:What is|Add|Take|How much are|How much is) (\S+) (plus|and|minus|less|from) (\S+)[?.]"
    first, word, second = re.fullmatch(pattern, question).groups()
    a, b = number_of(first), number_of(second)
    operation = "plus" if word in ("plus", "and") else "minus"
    return (operation, b, a) if word == "from" else (operation, a, b)


def rows_of(path):
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    assert all([message["role"] for message in row] == ["user", "assistant"] for row in rows)
    return [(row[0]["content"], row[1]["content"]) for row in rows]


@pytest.fixture
def rows(quickstart_data):
    return {name: rows_of(quickstart_data / f"{name}.jsonl") for name in ("train", "held_out")}


def test_every_answer_is_right(rows):
    for question, answer in rows["train"] + rows["held_out"]:
        operation, a, b = asked(question)
        assert number_of(answer.rpartition(": ")[2]) == (a + b if operation == "plus" else a - b), question


def test_every_step_of_an_answer_is_right_and_they_add_up(rows):
    for _, answer in rows["held_out"]:
        steps = re.findall(r"(\S+) (plus|minus) (\S+) is ([a-z-]+)", answer)
        for a, operation, b, result in steps:
            a, b = number_of(a), number_of(b)
            assert number_of(result) == (a + b if operation == "plus" else a - b), answer
        assert sum(number_of(result) for *_, result in steps) == number_of(answer.rpartition(": ")[2]), answer


def test_no_held_out_pair_stands_in_training_in_any_form(rows):
    trained, held_out = ({frozenset(asked(q)[1:]) for q, _ in rows[name]} for name in ("train", "held_out"))
    assert len(held_out) == 75
    assert not trained & held_out


def test_the_model_ends_its_turn_with_its_end_token(quickstart_data, example):
    make_model = example("quickstart/make_model")
    tokenizer = make_model.train_tokenizer(quickstart_data / "train.jsonl")
    model = make_model.make_model(tokenizer)
    turns = [{"role": "user", "content": "Add one and two."}, {"role": "assistant", "content": "three"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered.endswith("three<|im_end|>\n")
    assert tokenizer.eos_token == "<|im_end|>"
    ends = {tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id}
    assert ends == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert tokenizer.pad_token_id not in ends


def test_a_word_is_a_token(quickstart_data, example):
    tokenizer = example("quickstart/make_model").train_tokenizer(quickstart_data / "train.jsonl")
    assert tokenizer.tokenize("seventeen plus forty-two") == ["seventeen", "Ġplus", "Ġforty", "-", "two"]


def test_the_run_file_is_a_whole_configuration(quickstart_data, examples, monkeypatch):
    (quickstart_data / "untrained").mkdir()
    (quickstart_data / "untrained" / "config.json").write_text("{}")
    monkeypatch.chdir(quickstart_data)
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = parse_config(SFTConfig, ["@", str(examples / "quickstart" / "run.toml")])
    assert config.ckpt.output_dir == "trained"
    assert config.eval.dataset == "held_out.jsonl"
