"""Pairs: the targets of each side as text; what is left out, refused and told; the loader; OpenRLHF's signature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf.batching import Unit
from openrlhf.config import PairDataConfig
from openrlhf.datasets import PairDataset, prepare_pair_dataset
from openrlhf.errors import UserError
from tests.datasets.conftest import write_jsonl
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

TOKENIZER = tiny_tokenizer(CHATML)
END, EOS = "<|im_end|>", "<|endoftext|>"
PreparePairs = Callable[..., PairDataset]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.fixture
def prepare_pairs(tmp_path: Path) -> PreparePairs:
    """prepare_pairs(rows, **settings of the data): their data set."""

    def call(rows: list[Any], tokenizer: Any = TOKENIZER, **given: Any) -> PairDataset:
        file = write_jsonl(tmp_path / "pairs.jsonl", rows)
        settings = {"num_processors": 1, "cache_dir": str(tmp_path / "cache"), **given}
        return prepare_pair_dataset(PairDataConfig(dataset=str(file), **settings), tokenizer)

    return call


@pytest.fixture
def refusal(prepare_pairs: PreparePairs) -> Callable[..., str]:
    """refusal(rows, …): what is said."""

    def call(rows: list[Any], **given: Any) -> str:
        with pytest.raises(UserError) as caught:
            prepare_pairs(rows, **given)
        return str(caught.value)

    return call


def texts(unit: Unit, tokenizer: Any = TOKENIZER) -> list[tuple[str, str]]:
    """(context, trained text) of the chosen answer's sequence and of the rejected one's."""
    found = []
    for sequence in unit.sequences:
        is_target = torch.cat([torch.tensor([0]), sequence.loss_mask[:-1]]).bool()
        found.append(tuple(tokenizer.decode(sequence.input_ids[chosen]) for chosen in (~is_target, is_target)))
    return found


PROMPT = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
CHAT = [(PROMPT + "\n", "Ho." + END), (PROMPT + "\n", "No, never." + END)]
HO, NO = assistant("Ho."), assistant("No, never.")


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
        ({"chosen": [user("Hi?"), HO], "rejected": [user("Hi?"), NO]}, {}, CHAT),
        ({"prompt": "Hi?", "chosen": [user("Hi?"), HO], "rejected": [user("Hi?"), NO]}, {}, CHAT),
        (
            {"chosen": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}],
             "rejected": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "No, never."}]},
            {},
            CHAT,
        ),
    ],
    ids=["text", "named", "text shared", "template", "prompt messages", "answers", "message", "chats", "both", "gpt"],
)  # fmt: skip
def test_the_targets_are_the_answers_and_their_end(prepare_pairs: PreparePairs, row, settings, expected):
    assert texts(prepare_pairs([row], **settings).unit(0)) == expected


def test_a_unit_holds_margin_weight_and_place(prepare_pairs: PreparePairs):
    pair = {"prompt": "Hi?", "chosen": " Ho.", "rejected": " No, never."}
    dataset = prepare_pairs([{**pair, "margin": 1.5, "weight": 0.25}, {**pair, "margin": None}])
    first, second = dataset.unit(0), dataset.unit(1)
    assert (first.weight, first.numbers, second.weight, second.numbers) == (0.25, {"margin": 1.5}, 1.0, {"margin": 0.0})
    assert first.sequences[0].loss_mask.max() == 1, "the weight is the unit's, and counts once"
    assert (Path(first.name).name, Path(second.name).name) == ("pairs.jsonl:1", "pairs.jsonl:2")
    lengths = tuple(len(sequence.input_ids) for sequence in first.sequences)
    assert (dataset.unit_lengths(0), dataset.num_tokens.tolist()) == (lengths, [max(lengths)] * 2)
