"""Templates and tokenizers that cannot be trained with exactly: refused, with the reason and the remedy."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from openrlhf.config import DataConfig
from openrlhf.datasets.samples import BadRow
from openrlhf.datasets.tokenization.chat_template import resolve_chat_template
from openrlhf.datasets.tokenizer import get_tokenizer, prepare_special_tokens
from openrlhf.errors import UserError
from tests.datasets.conftest import pairs, write_jsonl
from tests.datasets.test_masks import ALL_TURNS, CHAT, LAST_TURN, encode, trained_text
from tests.helpers.chat_templates import GEMMA, REFUSES_SYSTEM
from tests.helpers.tokenizers import CHATML, tiny_tokenizer


def refusal(template: str, messages: list[dict], settings: DataConfig | None = None, **choices) -> str:
    with pytest.raises(BadRow) as caught:
        encode({"messages": messages}, tiny_tokenizer(template, **choices), settings or ALL_TURNS)
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


def test_a_header_in_text_that_is_gathered_in_a_loop_and_printed_behind_it_is_no_guess():
    """The loop prints nothing, and what stands behind it is the whole history: it is no generation prompt."""
    gathered = "'<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n'"
    loop = f"{{% for message in messages %}}{{% set all.text = all.text ~ {gathered} %}}{{% endfor %}}"
    template = "{% set all = namespace(text='') %}" + loop + "{{ all.text }}"
    for messages in (CHAT[:2], CHAT, [*CHAT, CHAT[1]]):
        assert "no generation prompt" in refusal(template, messages, LAST_TURN)


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


CALL = {"type": "function", "id": "c1", "function": {"name": "price", "arguments": {"of": "latte"}}}
WITH_RESULT = [
    {"role": "user", "content": "What is a latte?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3 euros", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It costs 3.", "reasoning_content": "The tool says so."},
]
# As Gemma 4's: results stand in the round of their call, an answer behind them goes on with the turn, and a turn that
# has said nothing is not closed.
RESULTS_INSIDE = """
{%- for message in messages %}{% if message.role != 'tool' %}
    {%- set goes_on = message.role == 'assistant' and messages[loop.index0 - 1].role == 'tool' %}
    {%- if not goes_on %}<|im_start|>{{ message.role }}{{ '\n' }}{% endif %}
    {%- if message.reasoning_content %}<|channel>thought {{ message.reasoning_content }}<channel|>{% endif %}
    {%- for call in message.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments.of }}</call>
        {%- for i in range(loop.index0, messages | length) if messages[i].role == 'tool' %}<result>
            {{- messages[i].content }}</result>
        {%- endfor %}
    {%- endfor %}
    {%- set said %}{% for part in message.content.split('|') %}{{ part }}{% endfor %}{% endset %}
    {{- said }}{% if said | trim | length > 0 %}<|im_end|>{{ '\n' }}{% endif %}
{%- endif %}{% endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}<|im_start|>assistant{{ '\n' }}{% endif %}"""
CHANNEL = ("<|channel>", "<channel|>")


def test_results_of_tools_within_an_answer_are_not_trained():
    assert "turn 2: the template prints results of tools" in refusal(RESULTS_INSIDE, WITH_RESULT)
    unread = [{**one, "content": ""} if one["role"] == "tool" else one for one in WITH_RESULT]
    assert "turn 2: the template prints results of tools" in refusal(RESULTS_INSIDE, unread)


def test_reasoning_that_goes_on_behind_a_result_is_a_part_of_the_answer():
    tokenizer = tiny_tokenizer(RESULTS_INSIDE, extra_special_tokens=CHANNEL)
    sample = encode({"messages": WITH_RESULT}, tokenizer, LAST_TURN)
    said = "<|channel>thought The tool says so.<channel|>It costs 3.<|im_end|>"
    assert trained_text(sample, tokenizer) == said
    without = [{"role": "assistant", "content": "It costs 3."}]
    header = RESULTS_INSIDE.replace("{%- if message.reasoning_content %}", "{%- if goes_on %}")
    assert "nothing tells whether" in refusal(header, WITH_RESULT[:3] + without, settings=LAST_TURN)


def test_a_template_may_ask_how_long_a_text_is_that_it_makes_in_a_loop():
    tokenizer = tiny_tokenizer(RESULTS_INSIDE)
    sample = encode({"messages": WITH_RESULT[:2]}, tokenizer, ALL_TURNS)
    assert trained_text(sample, tokenizer) == "<call>price latte</call>"


def test_a_token_that_ends_a_call_does_not_close_the_turn():
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% generation %}{{ message.content }}"
        "{% endgeneration %}<|im_end|>{% endfor %}"
    )
    tokenizer = tiny_tokenizer(template)
    tokenizer.add_tokens([AddedToken("</tool_call>", special=False, normalized=False)])
    said = {"role": "assistant", "content": "<tool_call>price</tool_call>"}
    sample = encode({"messages": [CHAT[0], said]}, tokenizer, ALL_TURNS)
    assert trained_text(sample, tokenizer) == "<tool_call>price</tool_call><|im_end|>"


def test_calls_are_printed_where_the_template_wants_null_beside_them():
    """As DeepSeek-R1-Distill's does; a word beside a call is still not printed, and refused."""
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is none %}"
        "{% for call in message.tool_calls %}{{ call.function.name + ' ' + call.function.arguments }}{% endfor %}"
        "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tiny_tokenizer(template)
    for content in (None, ""):
        messages = [CHAT[0], {"role": "assistant", "content": content, "tool_calls": [CALL]}]
        sample = encode({"messages": messages}, tokenizer, ALL_TURNS)
        assert trained_text(sample, tokenizer) == 'price {"of": "latte"}<|im_end|>'
    beside = [CHAT[0], {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}]
    assert "does not print the tool call 'price'" in refusal(template, beside)


def test_a_tokenizer_with_several_templates_is_asked_by_name():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML.replace("user", "tool user")}
    assert resolve_chat_template(tokenizer, None) == CHATML
    assert resolve_chat_template(tokenizer, "tool_use") == tokenizer.chat_template["tool_use"]
    with pytest.raises(UserError, match="no known name .chatml, default, tool_use."):
        resolve_chat_template(tokenizer, "tools")
    row = {"messages": CHAT[:2], "tools": [{"type": "function", "function": {"name": "price"}}]}
    with pytest.raises(BadRow, match="--data.tokenizer_chat_template tool_use"):
        encode(row, tokenizer, ALL_TURNS)
    chosen = DataConfig(multiturn=True, tokenizer_chat_template="tool_use")
    assert trained_text(encode(row, tokenizer, chosen), tokenizer) == "Coffee, and tea.<|im_end|>"


def test_a_tokenizer_without_offsets_is_refused_in_words(tmp_path, problems):
    class Slow:
        """As MistralCommonBackend, which has no backend of tokenizers'."""

        eos_token_id = pad_token_id = 0

    said = problems(write_jsonl(tmp_path / "a.jsonl", pairs(1)), tokenizer=Slow())
    assert "The tokenizer (Slow) gives no character offsets" in said
