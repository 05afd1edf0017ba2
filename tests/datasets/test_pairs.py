"""Pairs: the targets of each side as text; what is left out, refused and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from openrlhf.batching import Unit
from openrlhf.datasets.formats.chat import IS_NOT_READ
from openrlhf.datasets.samples import JSON_CALLS_ARE_READ, MARGIN_IS_NO_NUMBER, SHARED_TURNS_ARE_READ
from openrlhf.datasets.tokenization.encoder import NOTHING_BEFORE_THE_ANSWER
from openrlhf.errors import UserError
from tests.datasets.conftest import Prepare, PreparePairs, write_jsonl
from tests.helpers.chat_templates import FAMILIES
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

TOKENIZER = tiny_tokenizer(CHATML)
END, EOS = "<|im_end|>", "<|endoftext|>"
FAMILIES_WITH_TOOLS = [family for family in FAMILIES if family.tools]


def texts(unit: Unit, tokenizer: Any = TOKENIZER) -> list[tuple[str, str]]:
    """(context, trained text) of the chosen answer's sequence and of the rejected one's."""
    found = []
    for sequence in unit.sequences:
        is_target = torch.cat([torch.tensor([0]), sequence.loss_mask[:-1]]).bool()
        found.append(tuple(tokenizer.decode(sequence.input_ids[chosen]) for chosen in (~is_target, is_target)))
    return found


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.fixture
def refusal(prepare_pairs: PreparePairs) -> Callable[..., str]:
    """refusal(rows, …): what is said."""

    def call(rows: list[Any], **given: Any) -> str:
        with pytest.raises(UserError) as caught:
            prepare_pairs(rows, **given)
        return str(caught.value)

    return call


PROMPT = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
CHAT = [(PROMPT + "\n", "Ho." + END), (PROMPT + "\n", "No, never." + END)]
HO, NO = assistant("Ho."), assistant("No, never.")
YES, LATTE = assistant("Yes?"), user("A latte.")


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({"prompt": "Hi?", "chosen": " Ho.", "rejected": " No."}, {}, [("Hi?", " Ho." + EOS), ("Hi?", " No." + EOS)]),
        (
            {"q": "Hi?", "good": " Ho.", "bad": " No."},
            {"prompt_key": "q", "chosen_key": "good", "rejected_key": "bad", "input_template": "Q: {}\nA:"},
            [("Q: Hi?\nA:", " Ho." + EOS), ("Q: Hi?\nA:", " No." + EOS)],
        ),
        ({"chosen": "Hi? Ho.", "rejected": "Hi? No."}, {}, [("Hi?", " Ho." + EOS), ("Hi?", " No." + EOS)]),
        ({"prompt": "Hi?", "chosen": "Ho.", "rejected": "No, never."}, {"apply_chat_template": True}, CHAT),
        ({"prompt": [user("Hi?")], "chosen": "Ho.", "rejected": "No, never."}, {}, CHAT),
        ({"prompt": [user("Hi?")], "chosen": [HO], "rejected": [NO]}, {}, CHAT),
        ({"prompt": "Hi?", "chosen": HO, "rejected": NO}, {}, CHAT),
        (
            {"prompt": "Hi?", "chosen": "Ho.", "rejected": "No, never.", "system": "Be brief."},
            {"apply_chat_template": True},
            [(f"<|im_start|>system\nBe brief.{END}\n{context}", answer) for context, answer in CHAT],
        ),
        ({"chosen": [user("Hi?"), HO], "rejected": [user("Hi?"), NO]}, {}, CHAT),
        ({"prompt": "Hi?", "chosen": [user("Hi?"), HO], "rejected": [user("Hi?"), NO]}, {}, CHAT),
        ({"chosen": json.dumps([user("Hi?"), HO]), "rejected": json.dumps([user("Hi?"), NO])}, {}, CHAT),
        ({"prompt": json.dumps([user("Hi?")]), "chosen": json.dumps(HO), "rejected": "No, never."}, {}, CHAT),
        (
            {"prompt": "Hi?", "chosen": [YES, LATTE, HO], "rejected": [YES, LATTE, NO]},
            {},
            [(f"{PROMPT}Yes?{END}\n<|im_start|>user\nA latte.{END}\n<|im_start|>assistant\n\n", text + END)
             for text in ("Ho.", "No, never.")],
        ),
        (
            {"prompt": [YES, user("Hi?")], "chosen": [YES, user("Hi?"), HO], "rejected": [YES, user("Hi?"), NO]},
            {},
            [(f"<|im_start|>assistant\nYes?{END}\n{context}", answer) for context, answer in CHAT],
        ),
        (
            {"prompt": "[1]?", "chosen": "[2]", "rejected": '[{"role": 1}]'},
            {},
            [("[1]?", "[2]" + EOS), ("[1]?", '[{"role": 1}]' + EOS)],
        ),
        (
            {"chosen": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}],
             "rejected": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "No, never."}]},
            {},
            CHAT,
        ),
    ],
    ids=[
        "text", "named", "text shared", "template", "prompt messages", "answers", "message", "system", "chats", "both",
        "JSON", "JSON beside text", "shared turns", "begun by the assistant", "no messages", "gpt",
    ],
)  # fmt: skip
def test_the_targets_are_the_answers_and_their_end(prepare_pairs: PreparePairs, row, settings, expected):
    assert texts(prepare_pairs([row], **settings).unit(0)) == expected


TOOL = {"type": "function", "function": {"name": "get_menu", "parameters": {"type": "object", "properties": {}}}}
CALL = assistant("", tool_calls=[{"type": "function", "function": {"name": "get_menu", "arguments": {"q": "latte"}}}])
OTHER_CALL = assistant("", tool_calls=[{"function": {"name": "get_menu", "arguments": {}}}])
EARLIER = [user("Hi?"), assistant("Yes?"), user("A latte.")]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_masks_are_those_of_fine_tuning_on_each_answer(prepare_pairs: PreparePairs, prepare: Prepare, tmp_path, family):
    answers = [[assistant("Sure. Ça coûte 3€")], [assistant("No."), user("Why?"), assistant("Closed.")]]
    if family.tools:
        answers = [[CALL, {"role": "tool", "content": "[]"}, assistant("None left.")], [OTHER_CALL]]
    rows = [{"tools": [TOOL]}, {}] if family.tools else [{}]
    pairs = [{**row, "chosen": EARLIER + answers[0], "rejected": EARLIER + answers[1]} for row in rows]
    sides = [{**row, "prompt": EARLIER, "completion": answer} for row in rows for answer in answers]
    tokenizer = family.tokenizer(marked=False)
    of_pairs = prepare_pairs(pairs, tokenizer)
    of_sides = prepare(write_jsonl(tmp_path / "sides.jsonl", sides), tokenizer, targets="completion")
    found = [sequence for row in range(len(of_pairs)) for sequence in of_pairs.unit(row).sequences]
    assert len(found) == len(of_sides) == 2 * len(rows)
    for sequence, (ids, _, mask) in zip(found, of_sides, strict=True):
        assert torch.equal(sequence.input_ids, ids)
        assert torch.equal(sequence.loss_mask, mask)


@pytest.mark.parametrize("settings", [{}, {"input_template": "Q: {}\nA: "}, {"apply_chat_template": True}])
@pytest.mark.parametrize("prompt", ["Hi? ", "Hi?\n", "Clips: 2", ""])
def test_masks_of_text_are_those_of_fine_tuning(
    prepare_pairs: PreparePairs, prepare: Prepare, tmp_path, prompt, settings
):
    answers = ["48/2 = 24", " 4 clips."]
    pair = prepare_pairs([{"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}], **settings).unit(0)
    rows = [{"prompt": prompt, "completion": answer} for answer in answers]
    of_sides = prepare(write_jsonl(tmp_path / "sides.jsonl", rows), TOKENIZER, **settings)
    for sequence, (ids, _, mask) in zip(pair.sequences, of_sides, strict=True):
        assert torch.equal(sequence.input_ids, ids)
        assert torch.equal(sequence.loss_mask, mask)


def test_a_shared_beginning_is_the_same_tokens_on_both_sides(prepare_pairs: PreparePairs):
    """The tokenizer joins characters over the border of what the texts share: =2 of =24, and = of =37."""
    assert TOKENIZER.tokenize("=24") != [*TOKENIZER.tokenize("=2"), *TOKENIZER.tokenize("4")]
    numbers = [(one, other) for one in range(20, 30) for other in range(20, 30) if one != other]
    dataset = prepare_pairs([{"chosen": f"clips <<48/2={a}>>", "rejected": f"clips <<48/2={b}>>"} for a, b in numbers])
    for row, (chosen, rejected) in enumerate(numbers):
        (context, said), (other_context, other_said) = texts(dataset.unit(row))
        first, other_first = (sequence.loss_mask.argmax() + 1 for sequence in dataset.unit(row).sequences)
        ids, other_ids = (sequence.input_ids for sequence in dataset.unit(row).sequences)
        assert ids[:first].tolist() == other_ids[:other_first].tolist()
        assert ids[first] != other_ids[other_first], "no token that both share is judged"
        assert (context + said, other_context + other_said) == (
            f"clips <<48/2={chosen}>>{EOS}",
            f"clips <<48/2={rejected}>>{EOS}",
        )


def test_an_answer_that_goes_on_where_the_other_ends_begins_at_a_word(prepare_pairs: PreparePairs):
    pair = {"chosen": "Hi? Sure, wait.", "rejected": "Hi? Sure"}
    assert texts(prepare_pairs([pair]).unit(0)) == [("Hi?", " Sure, wait." + EOS), ("Hi?", " Sure" + EOS)]


def test_identical_answers_are_left_out_and_counted(prepare_pairs: PreparePairs):
    pair = {"prompt": "Hi?", "chosen": " Ho.", "rejected": " No."}
    rows = [pair, {**pair, "rejected": " Ho."}, {"chosen": "Hi? Ho.", "rejected": "Hi? Ho."}]
    dataset = prepare_pairs(rows)
    assert (len(dataset), dataset.report.left_out) == (1, {"identical answers": 2})
    assert dataset.report.lines()[:2] == [
        "1 pairs of 3 rows, 14 tokens, 8 of them targets (57.1%)",
        "left out, identical answers: 2",
    ]


LONG = {"prompt": "Hi?", "chosen": " Ho.", "rejected": " never" * 30}


def test_a_pair_with_one_long_answer_is_dropped_whole(prepare_pairs: PreparePairs):
    dataset = prepare_pairs([{"prompt": "Hi?", "chosen": " Ho.", "rejected": " No."}, LONG], max_len=16)
    assert (len(dataset), dataset.report.num_tokens) == (1, sum(dataset.unit_lengths(0)))
    assert dataset.report.left_out == {"longer than max_len": 1}


def test_truncation_cuts_the_long_answer_alone(prepare_pairs: PreparePairs):
    dataset = prepare_pairs([LONG], max_len=16, overlong="truncate")
    (_, chosen), (_, rejected) = texts(dataset.unit(0))
    assert (chosen, rejected.startswith(" never never"), EOS in rejected) == (" Ho." + EOS, True, False)
    assert dataset.unit_lengths(0)[1] == 16
    assert "cut at max_len: 1" in dataset.report.lines()
    both = {"prompt": "Hi?", "chosen": " never" * 30, "rejected": " never" * 31}
    cut = prepare_pairs([LONG, both], max_len=16, overlong="truncate")
    assert cut.report.left_out == {"identical answers within max_len": 1}
    assert cut.report.num_cut == 1


def test_a_pair_without_a_target_on_one_side_is_left_out(prepare_pairs: PreparePairs):
    near = {"prompt": "Hi?", "chosen": " Ho.", "rejected": " No."}
    silent = {"chosen": [user("Hi?"), assistant("Ho.", train=False)], "rejected": [user("Hi?"), NO]}
    far = {"prompt": "x" * 70, "chosen": "y", "rejected": "z"}
    dataset = prepare_pairs([near, silent, far], max_len=64, overlong="truncate")
    assert (len(dataset), dataset.report.left_out) == (
        1,
        {"no assistant turn to train": 1, "no target token within max_len": 1},
    )


PAIR = {"prompt": "Hi?", "chosen": " Ho.", "rejected": " No."}


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        ({**PAIR, "chosen": " "}, {}, "the answer in column 'chosen' is empty"),
        ({"chosen": [user("Hi?"), assistant(" ")], "rejected": [user("Hi?"), NO]}, {}, "chosen answer: turn 2"),
        ({**PAIR, "rejected": None}, {}, "column 'rejected' holds nothing (null) where text or messages belong"),
        ({**PAIR, "prompt": None}, {"prompt_key": "prompt"}, "column 'prompt' holds nothing (null) where"),
        ({**PAIR, "rejected": [{"content": "No."}]}, {}, "column 'rejected' behind its prompt: message 2 has no role"),
        ({**PAIR, "weight": -1}, {}, "column 'weight' is -1"),
        ({"chosen": "Ho.", "rejected": "No."}, {}, "share no beginning, and there is no prompt: name"),
        ({"chosen": "24 clips", "rejected": "27 clips"}, {}, "the two texts share no first token"),
        ({"chosen": [HO], "rejected": [NO]}, {}, "share no first message, and there is no prompt"),
        ({"chosen": "Hi? A", "rejected": "Hi? B"}, {"apply_chat_template": True}, "a template needs the prompt"),
        ({"chosen": "Hi? A", "rejected": "Hi? B"}, {"input_template": "Q: {}"}, "a template needs the prompt"),
        (
            {"prompt": "Who?", "chosen": [user("Hi?"), HO], "rejected": [user("Hi?"), NO]},
            {},
            "the prompt in column 'prompt' differs from the one with which the answers begin",
        ),
        (
            {"chosen": [user("Hi?"), HO, user("A"), HO], "rejected": [user("Hi?"), HO, user("B"), NO]},
            {},
            "leave the prompt with a message of the user, where the assistant's answer belongs: both answers must be",
        ),
        ({"prompt": "Hi?", "chosen": [HO, user("Bye.")], "rejected": [NO]}, {}, "'chosen' end with the user"),
        (
            {"chosen": [user("Hi?"), assistant("Ho.", weight=0.5)], "rejected": [user("Hi?"), NO]},
            {},
            "the chosen answer: a message has a weight other than 0 and 1",
        ),
        (LONG, {"max_len": 16, "overlong": "error"}, "the rejected answer: "),
        ({**PAIR, "chosen": 5}, {}, "column 'chosen' holds a number where text or messages belong"),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_used_is_told_with_its_row(refusal, row, settings, said):
    message = refusal([PAIR, row], **settings) if settings.get("overlong") else refusal([row], **settings)
    assert said in message
    assert "pairs.jsonl:" in message


def test_missing_columns_are_told_with_those_that_exist(refusal):
    said = refusal([{"chosen": "a", "reject": "b"}], prompt_key="question")
    assert "pairs.jsonl:1 has no column 'question' and no column 'rejected'; it has 'chosen', 'reject'." in said
    assert "--data.rejected_key" in said


def test_a_prompt_that_stands_twice_is_told(prepare_pairs: PreparePairs):
    dataset = prepare_pairs([{"prompt": "Hi?", "chosen": "Hi? Ho.", "rejected": "Hi? No."}, PAIR])
    assert dataset.report.remarks == {"both answers begin with the prompt, which stands before them once more": 1}


@pytest.mark.parametrize(("with_bos", "remarks"), [(False, {NOTHING_BEFORE_THE_ANSWER: 1}), (True, {})])
def test_a_first_token_that_nothing_predicts_is_told(prepare_pairs: PreparePairs, with_bos: bool, remarks: dict):
    dataset = prepare_pairs(
        [{"prompt": "", "chosen": "Ho.", "rejected": "No."}, PAIR], tiny_tokenizer(with_bos=with_bos)
    )
    assert dataset.report.remarks == remarks


CALLS = {"tool_calls": [{"function": {"name": "get_menu", "arguments": {}}}]}


def test_what_is_read_in_a_way_of_its_own_is_told(prepare_pairs: PreparePairs):
    turns = {"prompt": "Hi?", "chosen": [YES, LATTE, HO], "rejected": [YES, LATTE, NO]}
    call = {"prompt": [user("Hi?")], "chosen": json.dumps([{"role": "assistant", **CALLS}]), "rejected": [NO]}
    tokenizer = FAMILIES_WITH_TOOLS[0].tokenizer(marked=False)
    for row, remark in ((turns, SHARED_TURNS_ARE_READ), (call, JSON_CALLS_ARE_READ)):
        dataset = prepare_pairs([row], tokenizer)
        assert dataset.report.remarks[remark] == 1


def test_messages_as_json_may_be_calls_alone(prepare_pairs: PreparePairs):
    for family in FAMILIES_WITH_TOOLS:
        tokenizer, said = family.tokenizer(marked=False), [{"role": "assistant", **CALLS}]
        as_text, as_messages = (
            texts(
                prepare_pairs([{"prompt": [user("Hi?")], "chosen": one, "rejected": [NO]}], tokenizer).unit(0),
                tokenizer,
            )
            for one in (json.dumps(said), said)
        )
        assert as_text == as_messages
        assert "get_menu" in as_text[0][1]


def test_a_margin_that_nobody_reads_and_a_system_beside_texts_are_told(prepare_pairs: PreparePairs):
    rows = [{**PAIR, "margin": margin} for margin in ("big", 1e9, float("nan"), None, 0.5)]
    dataset = prepare_pairs([*rows, {**PAIR, "system": "Be brief."}, {**PAIR, "system": " "}])
    assert dataset.report.remarks == {MARGIN_IS_NO_NUMBER: 3, IS_NOT_READ.format("system"): 1}
    assert [dataset.unit(row).numbers["margin"] for row in range(5)] == [0.0, 0.0, 0.0, 0.0, 0.5]
    asked = prepare_pairs([{**PAIR, "system": "Be brief."}], apply_chat_template=True)
    assert IS_NOT_READ.format("system") not in asked.report.remarks


def test_an_allowed_bad_pair_is_left_out_whole(prepare_pairs: PreparePairs):
    dataset = prepare_pairs([{**PAIR, "rejected": ""}, PAIR], max_bad_rows=1)
    assert (len(dataset), dataset.report.num_bad_rows) == (1, 1)
    assert texts(dataset.unit(0)) == [("Hi?", " Ho." + EOS), ("Hi?", " No." + EOS)]


def test_control_tokens_in_an_answer_are_text_and_told_once_a_pair(prepare_pairs: PreparePairs):
    said = f"Ho{END}"
    dataset = prepare_pairs([{"prompt": "Hi?", "chosen": [assistant(said)], "rejected": [assistant(said + ".")]}])
    assert [targets for _, targets in texts(dataset.unit(0))] == [said + END, said + "." + END]
    assert list(dataset.report.remarks.values()) == [1]
