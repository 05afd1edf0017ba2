"""Each format: found by its columns, read as meant, refused in words."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest
from tokenizers.processors import TemplateProcessing

from openrlhf.config import DataConfig
from openrlhf.datasets.formats import FORMATS, find_format, tokenized
from openrlhf.datasets.formats.chat import IS_NOT_READ, KWARGS_ARE_NOT_READ, MEDIA_IS_NOT_READ
from openrlhf.datasets.formats.columns import row_weight
from openrlhf.datasets.samples import BadRow, EncodedSample
from openrlhf.datasets.tokenization.encoder import SampleEncoder
from openrlhf.errors import UserError
from tests.datasets.test_masks import trained_text
from tests.helpers.chat_templates import HERMES_TOOLS
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

TOKENIZER = tiny_tokenizer(CHATML)
ASK, SAY = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}


def encode(row: dict, tokenizer=TOKENIZER, pretrain_mode: bool = False, **settings) -> EncodedSample:
    data = DataConfig(**settings)
    content = FORMATS[find_format(row, data, "row 1", pretrain_mode)](row, data)
    return SampleEncoder(tokenizer, data, pretrain_mode).encode(content, row_weight(row, data))


def text(sample: EncodedSample) -> str:
    return TOKENIZER.decode(sample.input_ids)


@pytest.mark.parametrize(
    ("row", "settings", "whole", "trained"),
    [
        ({"q": "A?", "a": "B"}, {"input_key": "q", "output_key": "a"}, "A?B<|endoftext|>", "B<|endoftext|>"),
        (
            {"q": "A?", "a": "B"},
            {"input_key": "q", "output_key": "a", "input_template": "Q: {}\nA: {{x}} "},
            "Q: A?\nA: {x} B<|endoftext|>",
            "B<|endoftext|>",
        ),
        (
            {"q": "A?", "a": "B"},
            {"input_key": "q", "output_key": "a", "apply_chat_template": True},
            "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n",
            "B<|im_end|>",
        ),
        ({"prompt": "A?", "completion": " B"}, {}, "A? B<|endoftext|>", " B<|endoftext|>"),
        (
            {"prompt": [ASK], "completion": [SAY]},
            {},
            "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHo.<|im_end|>\n",
            "Ho.<|im_end|>",
        ),
        (
            {"messages": [ASK, SAY]},
            {},
            "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHo.<|im_end|>\n",
            "Ho.<|im_end|>",
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]},
            {},
            "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHo.<|im_end|>\n",
            "Ho.<|im_end|>",
        ),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            {"input_template": "{}\n"},
            "Add.\n\n1 2\n3<|endoftext|>",
            "3<|endoftext|>",
        ),
        ({"instruction": "Say hi.", "input": "", "output": " hi"}, {}, "Say hi. hi<|endoftext|>", " hi<|endoftext|>"),
        ({"text": "One two."}, {"pretrain_mode": True}, "One two.<|endoftext|>", "ne two.<|endoftext|>"),
        (
            {"body": "One two."},
            {"pretrain_mode": True, "input_key": "body"},
            "One two.<|endoftext|>",
            "ne two.<|endoftext|>",
        ),
    ],
    ids=[
        "columns", "template", "columns as chat", "prompt and completion", "prompt and completion as messages",
        "messages", "sharegpt", "alpaca", "alpaca without input", "text", "text in a named column",
    ],
)  # fmt: skip
def test_a_row_becomes_its_text_and_targets(row: dict, settings: dict, whole: str, trained: str):
    sample = encode(row, **settings)
    assert text(sample) == whole
    assert trained_text(sample, TOKENIZER) == trained


def test_end_token_is_appended_as_an_id_and_once():
    sample = encode({"q": "A?", "a": "B<|endoftext|>"}, input_key="q", output_key="a")
    assert text(sample) == "A?B<|endoftext|>"


def test_end_token_is_there_once_where_the_tokenizer_adds_one_too():
    tokenizer = tiny_tokenizer()
    end = ("<|endoftext|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    for answer in (" B", " B<|endoftext|>"):
        sample = encode({"q": "A?", "a": answer}, tokenizer, input_key="q", output_key="a")
        assert tokenizer.decode(sample.input_ids) == "A? B<|endoftext|>"
        assert trained_text(sample, tokenizer) == " B<|endoftext|>"


def test_start_token_is_there_once_even_if_the_text_begins_with_it():
    tokenizer = tiny_tokenizer(with_bos=True)
    for prompt in ("A?", "<|bos|>A?"):
        sample = encode({"q": prompt, "a": " B"}, tokenizer, input_key="q", output_key="a")
        assert tokenizer.decode(sample.input_ids) == "<|bos|>A? B<|endoftext|>"
        assert trained_text(sample, tokenizer) == " B<|endoftext|>"


def test_pad_that_equals_the_end_token_stays_a_target():
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    sample = encode({"q": "A?", "a": " B"}, tokenizer, input_key="q", output_key="a")
    assert trained_text(sample, tokenizer) == " B<|endoftext|>"


def test_tokens_come_through_unchanged_with_labels():
    sample = encode({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]})
    assert sample.input_ids.tolist() == [5, 6, 7, 8]
    assert sample.loss_mask.tolist() == [0, 1, 1, 0]


def test_tokens_come_through_unchanged_with_a_loss_mask():
    sample = encode({"input_ids": [5, 6, 7, 8], "loss_mask": [0, 1, 1, 0]})
    assert sample.loss_mask.tolist() == [0, 1, 1, 0]


def test_masks_that_stand_beside_their_tokens_are_shifted_on_request():
    sample = encode({"input_ids": [5, 6, 7, 8], "loss_mask": [0, 0, 1, 1]}, format="tokenized_by_token")
    assert sample.loss_mask.tolist() == [0, 1, 1, 0]


def test_messages_marked_as_untrained_are_context_only():
    row = {"messages": [ASK, {**SAY, "train": False}, ASK, {**SAY, "weight": 1}, ASK, {**SAY, "weight": 0}]}
    assert trained_text(encode(row, multiturn=True), TOKENIZER) == "Ho.<|im_end|>"
    assert encode(row, multiturn=True).loss_mask.argmax() > 20


def test_completion_trains_every_turn_after_the_last_user():
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    }
    tool = {"role": "tool", "content": "42"}
    row = {"messages": [ASK, SAY, ASK, call, tool, SAY]}
    tokenizer = HERMES_TOOLS.tokenizer(marked=False)
    sample = encode(row, tokenizer, targets="completion")
    called = '\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>'
    assert trained_text(sample, tokenizer) == called + "Ho.<|im_end|>"


def test_everything_trains_every_token_after_the_first():
    sample = encode({"messages": [ASK, SAY]}, targets="everything")
    assert sample.loss_mask.tolist() == [1] * (len(sample.input_ids) - 1) + [0]


def test_tools_are_read_as_text_and_as_objects():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"enum": [None, 1]}}}]
    call = [{"type": "function", "function": {"name": "f", "arguments": {"x": None}}}]
    as_objects = {
        "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": call}],
        "tools": tools,
    }
    as_text = {
        "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": json.dumps(call)}],
        "tools": json.dumps(tools),
    }
    tokenizer = HERMES_TOOLS.tokenizer(marked=False)
    assert encode(as_objects, tokenizer).input_ids.tolist() == encode(as_text, tokenizer).input_ids.tolist()
    assert '"arguments": {"x": null}' in tokenizer.decode(encode(as_objects, tokenizer).input_ids)


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("row", "messages", "settings"),
    [
        ({"messages": [ASK, SAY], "system": "Be brief."}, [SYSTEM, ASK, SAY], {}),
        ({"messages": [SYSTEM, ASK, SAY], "system": "Be brief."}, [SYSTEM, ASK, SAY], {}),
        ({"messages": [ASK, SAY], "system": " "}, [ASK, SAY], {}),
        ({"prompt": [ASK], "completion": [SAY], "system": "Be brief."}, [SYSTEM, ASK, SAY], {}),
        (
            {"instruction": "Hi?", "output": "Ho.", "system": "Be brief.", "history": [["Hi?", "Ho."]]},
            [SYSTEM, ASK, SAY, ASK, SAY],
            {"apply_chat_template": True},
        ),
    ],
    ids=["messages", "said twice", "blank", "prompt and completion", "alpaca"],
)
@pytest.mark.parametrize("targets", ["all_turns", "completion"])
def test_system_and_history_beside_the_messages_are_read(row: dict, messages: list, settings: dict, targets: str):
    found, expected = encode(row, targets=targets, **settings), encode({"messages": messages}, targets=targets)
    assert text(found) == text(expected)
    assert trained_text(found, TOKENIZER) == trained_text(expected, TOKENIZER)


@pytest.mark.parametrize(
    ("columns", "unread"),
    [
        ({"system": "Be brief.", "tools": [{"name": "f"}]}, ("system", "tools")),
        ({"system": " ", "tools": "[]"}, ()),
    ],
)
def test_what_a_plain_text_has_no_place_for_is_counted(columns: dict, unread: tuple[str, ...]):
    found = encode({"prompt": "Hi?", "completion": "Ho.", **columns})
    assert set(found.remarks) == {IS_NOT_READ.format(name) for name in unread}
    as_conversation = encode({"prompt": "Hi?", "completion": "Ho.", **columns}, apply_chat_template=True)
    assert not any("is not read" in remark for remark in as_conversation.remarks)


def test_arguments_of_a_template_that_are_not_read_are_counted():
    row = {"messages": [ASK, SAY], "chat_template_kwargs": {"enable_thinking": False}}
    assert encode(row).remarks == (KWARGS_ARE_NOT_READ,)
    assert encode(row | {"chat_template_kwargs": {"enable_thinking": None}}).remarks == ()


def test_pictures_beside_the_messages_are_told_not_to_be_read():
    row = {"messages": [ASK, SAY], "images": ["a.png"], "audio": None, "videos": []}
    assert encode(row).remarks == (MEDIA_IS_NOT_READ.format("images"),)
    arrays = {"images": numpy.array([1, 2]), "audio": numpy.array([])}  # of Dataset.with_format("numpy")
    assert encode({"messages": [ASK, SAY], **arrays}).remarks == (MEDIA_IS_NOT_READ.format("images"),)
    assert encode({"prompt": "A?", "completion": " B", "tools": numpy.array([1, 2])}).remarks == (
        IS_NOT_READ.format("tools"),
    )


@pytest.mark.parametrize("key", ["parameters", "input"])
def test_arguments_of_a_call_are_read_under_other_names(key: str):
    tokenizer = HERMES_TOOLS.tokenizer(marked=False)
    found = encode(call_row({"name": "f", key: {"x": 1}}), tokenizer)
    expected = encode(call_row({"name": "f", "arguments": {"x": 1}}), tokenizer)
    assert found.input_ids.tolist() == expected.input_ids.tolist()


def call_row(call: dict) -> dict:
    return {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [call]}]}


def test_the_old_key_of_a_call_is_read_as_one():
    tokenizer = HERMES_TOOLS.tokenizer(marked=False)
    call = {"name": "f", "arguments": '{"x": 1}'}
    old = {"messages": [ASK, {"role": "assistant", "content": None, "function_call": call}]}
    assert encode(old, tokenizer).input_ids.tolist() == encode(call_row(call), tokenizer).input_ids.tolist()


def test_messages_are_read_beside_a_column_that_nobody_asked_for_by_name():
    row = {"messages": [ASK, SAY], "input": "What the messages were made of."}
    assert trained_text(encode(row, input_key="input"), TOKENIZER) == "Ho.<|im_end|>"
    assert trained_text(encode({"input": [ASK, SAY]}, input_key="input"), TOKENIZER) == "Ho.<|im_end|>"
    other = [ASK, {"role": "assistant", "content": "Other."}]
    assert trained_text(encode({**row, "asked": other}, input_key="asked"), TOKENIZER) == "Other.<|im_end|>"


def test_named_columns_win_over_tokens():
    row = {"q": "A?", "a": "B", "input_ids": [5, 6], "labels": [5, 6]}
    assert text(encode(row, input_key="q", output_key="a")) == "A?B<|endoftext|>"
    assert encode(row, input_key="input_ids").input_ids.tolist() == [5, 6]
    assert encode({"input_ids": [5, 6], "labels": [5, 6]}, input_key="q").input_ids.tolist() == [5, 6]


@pytest.mark.parametrize(
    "judged",
    [{"labels": [-100, -100, -100, 6, 7, -100]}, {"loss_mask": [0, 0, 1, 1, 0, 0]}],
    ids=["labels", "mask"],
)
def test_padding_that_attention_mask_hides_is_left_out(judged: dict):
    sample = encode({"input_ids": [0, 0, 5, 6, 7, 0], "attention_mask": [0, 0, 1, 1, 1, 0], **judged})
    assert sample.input_ids.tolist() == [5, 6, 7]
    assert sample.loss_mask.tolist() == [1, 1, 0]


def test_the_convention_of_a_padded_mask_is_seen_behind_the_padding():
    row = {"input_ids": [5, 6, 7, 0], "loss_mask": [0, 1, 1, 0], "attention_mask": [1, 1, 1, 0]}
    assert tokenized.stand_beside_tokens([row])
    assert encode(row, format="tokenized_by_token").loss_mask.tolist() == [1, 1, 0]


@pytest.mark.parametrize("mask", [[0, 1, 1, 0], [0, 0, 1, 1]], ids=["by index", "by token"])
def test_a_mask_beside_labels_may_say_the_same_in_either_convention(mask: list[int]):
    sample = encode({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "loss_mask": mask})
    assert sample.loss_mask.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("row", "settings", "words"),
    [
        ({"q": "A?"}, {"input_key": "q", "output_key": "a"}, "no column 'a'; it has 'q'"),
        ({"question": "A?", "answer": "B"}, {}, "in no known format; it has 'question', 'answer'"),
        ({"text": "x"}, {"format": "textt"}, "--data.format 'textt' is unknown"),
    ],
    ids=["missing column", "unknown columns", "unknown format"],
)
def test_a_shape_that_is_none_is_refused(row: dict, settings: dict, words: str):
    with pytest.raises(UserError, match="row 1|--data.format") as caught:
        encode(row, **settings)
    assert words in str(caught.value)


def in_parts(*parts: Any) -> dict:
    """A row whose answer is a list of parts, of which the first is text."""
    return {"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": "Ho. "}, *parts]}]}


def test_parts_of_text_are_joined():
    part = {"type": "output_text", "text": "Hey.", "annotations": [], "image_url": None}
    joined = {"messages": [ASK, {"role": "assistant", "content": "Ho. Hey."}]}
    assert (encode(in_parts(part)).input_ids == encode(joined).input_ids).all()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [ASK, {"role": "assistant", "content": " "}]}, "the assistant's answer is empty"),
        ({"messages": "[{"}, "messages is no valid JSON"),
        ({"messages": [ASK, "Ho."]}, "message 2: text where an object with role and content belongs"),
        ({"messages": [{"content": "x"}]}, "message 1 has no role; it has 'content'"),
        ({"messages": [ASK, {"role": "assistant", "content": 3}]}, "message 2: its content is a number"),
        ({"messages": [{"content": None, "role": "user"}, SAY]}, "message 1 has no content; it has 'role'"),
        (in_parts({"type": "image_url", "image_url": "a.png", "text": "a"}), "message 2: part 2 of its content, of"),
        (in_parts({"type": "thinking", "thinking": "hm", "text": ""}), "type 'thinking', has 'type', 'thinking'"),
        (in_parts({"type": "text", "text": "Ho.", "train": False}), "has 'type', 'text', 'train', which is not"),
        (in_parts({"type": "image", "text": "cap"}), "of type 'image', has"),
        (in_parts({"type": "text"}), "of type 'text', has 'type', which is not"),
        (in_parts("Ho."), "part 2 of its content is text where an object"),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}]},
            "message 2, tool call 1 (f): its arguments text is no valid JSON",
        ),
        ({"messages": [ASK, SAY], "tools": "[{]"}, "tools is no valid JSON"),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
            "does not print the tool call",
        ),
        ({"messages": [ASK, {"role": "assistant", "content": "a\ud800b"}]}, "half a surrogate pair"),
        ({"prompt": "x", "completion": ""}, "the answer in column 'completion' is empty"),
        ({"prompt": "x", "completion": 7}, "column 'completion' holds a number where text belongs"),
        ({"input_ids": [1, 2], "labels": [1]}, "labels has 1 entries, input_ids has 2"),
        ({"input_ids": [1, 2], "labels": [-100, 1]}, "labels stand beside their tokens"),
        ({"input_ids": [1, 2, 3], "loss_mask": [0, 0, 1]}, "tokenized_by_token"),
        ({"input_ids": [1, 2, 3], "loss_mask": [0, 2, 0]}, "loss_mask holds 2"),
        ({"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "loss_mask": [1, 0, 0]}, "labels and loss_mask disagree"),
        ({"input_ids": [1, 2, 3], "labels": [1, 2, 3], "attention_mask": [1, 0, 1]}, "attention_mask hides token 2"),
        ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [0, 0]}, "attention_mask is 0 everywhere"),
        ({"messages": [SYSTEM, ASK, SAY], "system": "Be kind."}, "column 'system' says 'Be kind.'"),
        ({"instruction": "x", "output": "y", "system": "z"}, "column 'system' has no place in a plain text"),
        ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, "column 'history' has no place in a plain text"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "column 'history', turn 1: [question, answer]"),
        ({"input_ids": "1 2", "labels": [1]}, "column 'input_ids' holds text"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_says_why(row: dict, words: str):
    with pytest.raises(BadRow) as caught:
        encode(row)
    assert words in str(caught.value)
