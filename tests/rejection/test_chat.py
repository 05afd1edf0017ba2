"""A conversation in the terminal."""

from __future__ import annotations

import io

import pytest

from openrlhf.config import parse_config
from openrlhf.config.chat_settings import ChatConfig
from openrlhf.errors import UserError
from openrlhf.rejection import chat as module
from tests.helpers.workbench import save_model

real_answer = module._answer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("chat") / "model", max_position_embeddings=256)


@pytest.fixture
def talk(model, monkeypatch, capsys):
    """Lines in → what is printed, and the token ids that the model was asked with."""

    def run(*lines: str, flags: tuple[str, ...] = ()) -> tuple[str, list[list[int]]]:
        asked: list[list[int]] = []

        def noted(model, tokenizer, ids, config):
            asked.append(tokenizer.decode(ids))
            return real_answer(model, tokenizer, ids, config)

        monkeypatch.setattr(module, "_answer", noted)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        all_flags = ["--model.model_name_or_path", str(model), "--chat.max_new_tokens", "5", *flags]
        module.chat(parse_config(ChatConfig, all_flags))
        return capsys.readouterr().out, asked

    return run


def test_an_answer_is_part_of_what_is_asked_next(talk):
    shown, asked = talk("sum of three", "coffee", flags=("--chat.temperature", "0"))
    first, second = asked
    assert "sum of three" in first
    assert second.startswith(first)
    assert second.endswith("<|im_start|>user\ncoffee<|im_end|>\n<|im_start|>assistant\n")
    assert second[len(first) :].split("<|im_end|>")[0].strip() in shown


def test_an_empty_line_begins_anew(talk):
    _, asked = talk("coffee", "", "coffee", flags=("--chat.temperature", "0"))
    assert asked[0] == asked[1]


def test_the_system_message_stands_first_in_every_conversation(talk):
    _, asked = talk("coffee", "", "sum", flags=("--chat.system", "seven"))
    assert all(text.index("seven") < text.index(word) for text, word in zip(asked, ("coffee", "sum"), strict=True))


@pytest.mark.parametrize("seed", ["1", "-1", str(2**32)])
def test_one_seed_gives_one_conversation(talk, seed):
    flags = ("--chat.temperature", "2", "--chat.seed", seed)
    assert talk("coffee", "sum", flags=flags) == talk("coffee", "sum", flags=flags)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_line_that_is_no_utf_8_is_told_and_left_out(monkeypatch, capsys, errors):
    given = io.TextIOWrapper(io.BytesIO(b"first\ncaf\xe9\nlast"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", given)
    assert list(module._lines()) == ["first", "last"]
    assert r"the line 'caf\udce9' is no UTF-8, and is left out" in capsys.readouterr().err


def test_a_conversation_that_does_not_fit_is_told(talk):
    with pytest.raises(UserError, match=r"The conversation has .* tokens, and the model 256 positions: begin anew"):
        talk("seven " * 400)
