"""Templates and tokenizers that cannot be trained with exactly: refused, with the reason and the remedy."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from openrlhf.config import DataConfig
from openrlhf.datasets.samples import BadRow
from openrlhf.datasets.tokenization.chat_template import resolve_chat_template
from openrlhf.datasets.tokenizer import get_tokenizer, prepare_special_tokens
from openrlhf.errors import UserError
from tests.datasets.conftest import pairs, write_jsonl
from tests.datasets.test_masks import ALL_TURNS, CHAT, encode, trained_text
from tests.helpers.chat_templates import GEMMA, REFUSES_SYSTEM
from tests.helpers.tokenizers import CHATML, tiny_tokenizer


def refusal(template: str, messages: list[dict], **choices) -> str:
    with pytest.raises(BadRow) as caught:
        encode({"messages": messages}, tiny_tokenizer(template, **choices), ALL_TURNS)
    return str(caught.value)


def test_a_template_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.jinja").write_text(CHATML)
    assert resolve_chat_template(tiny_tokenizer(), "~/own.jinja") == CHATML


def test_the_templates_own_words_are_passed_on():
    messages = [{"role": "system", "content": "Be brief."}, *CHAT]
    said = refusal(REFUSES_SYSTEM.template(False), messages, extra_special_tokens=REFUSES_SYSTEM.specials)
    assert "System role not supported" in said


def test_roles_that_do_not_alternate_are_refused_where_the_template_demands_it():
    said = refusal(GEMMA.template(False), CHAT[:1] + CHAT[:2], with_bos=True, extra_special_tokens=GEMMA.specials)
    assert "must alternate" in said


def test_a_loop_by_index_needs_marks():
    template = (
        "{% for i in range(messages | length) %}<|im_start|>{{ messages[i].role }}\n"
        "{{ messages[i].content }}<|im_end|>{% endfor %}"
    )
    assert "{% generation %}" in refusal(template, CHAT)


def test_text_changed_after_it_was_put_together_needs_marks():
    template = "{% set text %}" + CHATML + "{% endset %}{{ text | replace('o', '0') | upper }}"
    assert "cannot be traced" in refusal(template, CHAT)


def test_a_tokenizer_that_renders_in_a_way_of_its_own_is_compared_row_by_row():
    class Shouting(PreTrainedTokenizerFast):
        def apply_chat_template(self, *args, **more):
            return super().apply_chat_template(*args, **more).upper()

    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.__class__ = Shouting
    with pytest.raises(BadRow, match="cannot be traced"):
        encode({"messages": CHAT}, tokenizer, ALL_TURNS)


def test_a_header_without_generation_prompt_is_no_guess():
    template = CHATML.partition("{% if add_generation_prompt %}")[0]
    assert "no generation prompt" in refusal(template, CHAT)


def test_a_template_that_prints_something_else_is_refused():
    template = CHATML.replace("message['content']", "'Yes.'")
    assert "does not print what this assistant message says" in refusal(template, CHAT)


def test_answers_equal_to_the_question_are_not_mixed_up():
    tokenizer = tiny_tokenizer(CHATML)
    messages = [{"role": role, "content": "<|im_start|>assistant\nYes"} for role in ("user", "assistant")] * 2
    sample = encode({"messages": messages}, tokenizer, ALL_TURNS)
    assert trained_text(sample, tokenizer) == "<|im_start|>assistant\nYes<|im_end|>" * 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "the tokenizer has no chat template"),
        ("nowhere.jinja", "is no file, no known name (chatml) and no Jinja text"),
        ("{% for %}", "is no valid Jinja"),
    ],
)
def test_a_missing_or_broken_template_is_refused(given: str | None, words: str):
    with pytest.raises(UserError) as caught:
        resolve_chat_template(tiny_tokenizer(), given)
    assert words in str(caught.value)


def test_chatml_by_name_for_a_model_without_template():
    tokenizer = tiny_tokenizer()
    settings = DataConfig(multiturn=True, tokenizer_chat_template="chatml")
    sample = encode({"messages": CHAT[:2]}, tokenizer, settings)
    assert trained_text(sample, tokenizer) == "Coffee, and tea.<|im_end|>"


def test_a_tokenizer_without_end_token_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    with pytest.raises(UserError, match="no end token"):
        prepare_special_tokens(tokenizer)


def test_a_tokenizer_without_pad_token_pads_with_its_end_token(tmp_path):
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    opened = get_tokenizer(str(tmp_path))
    assert (opened.pad_token, opened.padding_side, opened.chat_template) == ("<|endoftext|>", "right", CHATML)


def test_a_tokenizer_keeps_its_padding_side(tmp_path):
    """An exported model is asked in batches as its base was."""
    tiny_tokenizer(CHATML).save_pretrained(tmp_path / "base")
    get_tokenizer(str(tmp_path / "base"), "left").save_pretrained(tmp_path / "left")
    get_tokenizer(str(tmp_path / "left")).save_pretrained(tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").padding_side == "left"


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        get_tokenizer(str(tmp_path))


@pytest.mark.parametrize("template", ["no place", "{} {}", "{name}", "{"])
def test_an_input_template_that_cannot_be_filled_is_refused(template: str, tmp_path, problems):
    assert "--data.input_template" in problems(write_jsonl(tmp_path / "a.jsonl", pairs(1)), input_template=template)


def test_a_generation_block_that_stops_short_of_the_closing_token_takes_it_in():
    template = CHATML.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
        "{{ '<|im_end|>\n' }}",
    )
    tokenizer = tiny_tokenizer(template)
    sample = encode({"messages": CHAT[:2]}, tokenizer, ALL_TURNS)
    assert trained_text(sample, tokenizer) == "Coffee, and tea.<|im_end|>"


def test_a_loop_over_messages_within_a_turn_belongs_to_no_message():
    template = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% for other in messages if message.role == 'user' %}"
        "{% if other.role == 'assistant' %}{{ other.content }}{% endif %}{% endfor %}",
    )
    tokenizer = tiny_tokenizer(template)
    sample = encode({"messages": CHAT}, tokenizer, ALL_TURNS)
    assert tokenizer.decode(sample.input_ids).startswith(CHAT[1]["content"] + CHAT[3]["content"])
    assert trained_text(sample, tokenizer) == "".join(CHAT[turn]["content"] + "<|im_end|>" for turn in (1, 3))
