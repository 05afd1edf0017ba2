"""What a conversation holds and its template does not print is told; the targets are what is printed, all the same."""

from __future__ import annotations

import pytest

from tests.datasets.test_masks import ALL_TURNS, LAST_TURN, encode, expected_text, trained_text
from tests.helpers.chat_templates import CHATML, DEEPSEEK, HARMONY, HERMES_TOOLS, MISTRAL, STRIPS_REASONING, Family

ASK, TEA = {"role": "user", "content": "Tea or 4?"}, {"role": "assistant", "content": "Tea."}
CALL = {"type": "function", "id": "call00000", "function": {"name": "brew", "arguments": '{"what": "tea"}'}}
RESULT = {"role": "tool", "content": "4", "tool_call_id": "call00000"}
BEFORE = "the chat template does not print the part before </think> of an answer"
BESIDE = "the chat template does not print the content beside the tool calls of an answer"
TOOL = "the chat template does not print a message of the role 'tool'"
NO_TOOLS = Family(  # as of Phi-3
    "no_branch_for_tools",
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] + '<|end|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}<G>{{ message['content'] + '<|end|>' }}</G>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    lambda message, _: message["content"] + "<|end|>",
    specials=("<|user|>", "<|assistant|>", "<|end|>"),
)


def says(content: str, *calls: dict) -> dict:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}


@pytest.mark.parametrize("marked", [False, True], ids=["unmarked", "marked"])
@pytest.mark.parametrize(
    ("family", "messages", "remarks"),
    [
        (DEEPSEEK, [ASK, says("<think>\nIt is cold.\n</think>\n\nTea.")], {BEFORE}),
        (DEEPSEEK, [ASK, says("Tea.</think>Tea.")], {BEFORE}),
        (DEEPSEEK, [ASK, says("It is cold.</think>", CALL)], {BEFORE}),
        (DEEPSEEK, [ASK, says("<think>\n\n</think>\n\nTea.")], set()),
        (STRIPS_REASONING, [ASK, says("<think>It is cold.</think>Tea.")], {BEFORE}),
        (CHATML, [ASK, says("<think>\nIt is cold.\n</think>\n\nTea.")], set()),
        (CHATML, [ASK, says("Tea.</think>Tea.")], set()),
        (MISTRAL, [ASK, says("I brew some.", CALL), RESULT, TEA], {BESIDE}),
        (HARMONY, [ASK, says("tea", CALL), RESULT, TEA], {BESIDE}),
        (MISTRAL, [ASK, says("", CALL), RESULT, TEA], set()),
        (HERMES_TOOLS, [ASK, says("I brew some.", CALL), RESULT, TEA], set()),
        (NO_TOOLS, [ASK, TEA, RESULT, TEA], {TOOL}),
        (NO_TOOLS, [ASK, TEA], set()),
    ],
    ids=lambda value: value.name if isinstance(value, Family) else None,
)
def test_what_is_not_printed_is_told(family: Family, messages: list[dict], remarks: set[str], marked: bool):
    tokenizer = family.tokenizer(marked)
    sample = encode({"messages": messages}, tokenizer, ALL_TURNS)
    assert set(sample.remarks) == remarks
    assert trained_text(sample, tokenizer) == expected_text(family, messages)


@pytest.mark.parametrize(
    ("family", "answer"),
    [(DEEPSEEK, says("It is cold.</think>Tea.")), (MISTRAL, says("I brew some.", CALL))],
    ids=lambda value: value.name if isinstance(value, Family) else None,
)
def test_of_turns_that_are_not_trained_it_is_left_out_on_purpose(family: Family, answer: dict):
    sample = encode({"messages": [ASK, answer, RESULT, TEA]}, family.tokenizer(False), LAST_TURN)
    assert sample.remarks == ()
