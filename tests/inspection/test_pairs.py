"""Pairs looked at: the shared prompt once, what differs, whose answers are longer; which rows are taken for pairs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from openrlhf.batching import FixedSize
from openrlhf.cli import inspect_data
from openrlhf.config import PairDataConfig
from openrlhf.datasets import PairDataset, prepare_pair_dataset
from openrlhf.errors import UserError
from openrlhf.inspection.samples import parts_of
from openrlhf.inspection.show import show, write_page
from openrlhf.inspection.statistics import Statistics, statistics_of
from tests.helpers.browser import CHROMIUM, in_browser
from tests.inspection.test_inspection import TOKENIZER, flags


def pair(number: int, chosen: str, rejected: str, **more: float) -> dict:
    prompt, said = {"role": "user", "content": f"Say {number}"}, {"role": "assistant"}
    return {
        "prompt": [prompt],
        "chosen": [said | {"content": chosen}],
        "rejected": [said | {"content": rejected}],
    } | more


ROWS = [
    pair(0, "The sum is seven.", "The sum is three, or four.", margin=1.5, weight=2.0),
    pair(1, "Ça va? 🙂 </script>", "Ça va? 🙃"),
    pair(2, "Yes.", "Yes."),
    pair(3, "Sure, wait five minutes.", "No."),
]


@pytest.fixture
def dataset(tmp_path: Path) -> PairDataset:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return prepare_pair_dataset(PairDataConfig(dataset=str(path), cache_dir=str(tmp_path / "cache")), TOKENIZER)


def statistics_with(dataset: PairDataset, packed: bool = False) -> Statistics:
    return statistics_of(
        dataset, FixedSize(2), batch_size=2, packed=packed, num_data_ranks=1, seed=1, max_epochs=1, max_steps=None
    )


def printed(dataset: PairDataset, colours: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=colours, color_system="standard" if colours else None)
    show(console, dataset, TOKENIZER, statistics_with(dataset), num_rows=2)
    return out.getvalue()


def test_the_terminal_shows_the_prompt_once_and_what_differs(dataset: PairDataset):
    text = printed(dataset, colours=False)
    (shown,) = [part for part in text.split("── ") if "pairs.jsonl:1 " in part]
    title, *lines = shown.splitlines()
    assert title.endswith(" · margin 1.5 · weight 2")
    assert lines[:3] == ["<|im_start|>user⏎", "Say 0<|im_end|>⏎", "<|im_start|>assistant⏎"]
    assert "chosen:\n⟦The sum is‹ seven›.<|im_end|>⟧⏎\n" in shown
    assert "rejected:\n⟦The sum is‹ three, or four›.<|im_end|>⟧⏎\n" in shown
    assert "2 pairs" in text


def test_the_terminal_underlines_what_differs(dataset: PairDataset):
    assert "\x1b[1;4;32m seven" in printed(dataset, colours=True)
    assert "not in the other answer" in printed(dataset, colours=True)


def test_parts_of_a_pair_are_its_two_sequences(dataset: PairDataset):
    for number in range(len(dataset)):
        prompt, *sides = parts_of(dataset, TOKENIZER, number)
        for side, sequence in zip(sides, dataset.unit(number).sequences, strict=True):
            pieces = [*prompt.pieces, *side.pieces]
            assert "".join(piece.text for piece in pieces) == TOKENIZER.decode(sequence.input_ids)
            targets = [token for piece in pieces if piece.is_target for token in piece.token_ids]
            assert targets == sequence.input_ids[1:][sequence.loss_mask[:-1] > 0].tolist()
        assert not any(piece.is_target for piece in prompt.pieces)


def test_the_facts_tell_whose_answers_are_longer_and_what_is_left_out(dataset: PairDataset):
    text = " ".join(printed(dataset, colours=False).split())
    assert "kept │ 3 │" in text
    assert "left out: identical answers │ 1 │" in text
    chosen = sorted(int(dataset.samples.num_target_tokens[2 * row]) for row in range(3))
    assert f"targets of the chosen answers │ least {chosen[0]}," in text
    assert f"mean {sum(chosen) / 3:.1f} │" in text
    assert "in 66.7% of the pairs; in 0.0% both are as long" in text


def test_the_padding_is_that_of_both_sides(dataset: PairDataset):
    lengths = [dataset.unit_lengths(row) for row in range(3)]
    found = statistics_with(dataset)
    of_first_step = [lengths[row] for row in found.first_step[0][0]]
    (alone,) = [pair for pair in lengths if pair not in of_first_step]
    # A micro-batch of two pairs is as wide as the longest of its four sides.
    num_computed = 4 * max(map(max, of_first_step)) + 2 * max(alone)
    assert found.useful_share == sum(map(sum, lengths)) / num_computed
    assert statistics_with(dataset, packed=True).useful_share == 1
    assert found.tokens_per_step == sum(map(sum, lengths)) / 2


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_the_page_shows_both_sides_in_a_real_browser(dataset: PairDataset, tmp_path: Path):
    page = tmp_path / "report.html"
    write_page(page, dataset, TOKENIZER, statistics_with(dataset))
    shown = in_browser(page, tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in shown
    assert shown.count("<h3>chosen</h3>") == shown.count("<h3>rejected</h3>") == 1
    assert shown.count('<span class="special" data-about') == 3, "the prompt stands there once"
    assert '<span class="target differs "' in shown
    assert "margin 1.5 · weight 2" in shown
    assert 'Tokens <span id="each">a prompt with an answer</span>' in shown


def command(tmp_path: Path, rows: list[dict], *more: str) -> None:
    words = flags(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inspect_data.main([*words, "--show", "1", *more])


def test_columns_of_pairs_are_taken_for_pairs(tmp_path: Path, capsys):
    command(tmp_path, ROWS)
    assert "rejected:\n⟦" in capsys.readouterr().out


def test_rows_that_train_sft_can_train_on_are_shown_as_it_trains_them(tmp_path: Path, capsys):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [{**row, "messages": messages} for row in ROWS]
    command(tmp_path, rows)
    assert "rejected:" not in capsys.readouterr().out
    command(tmp_path, rows, "--data.chosen_key", "chosen")
    assert "rejected:\n⟦" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given", [["--model.beta", "0.2"], ["--model.margin_loss_enable", "--ds.value_head_prefix", "score"]]
)
def test_flags_of_train_dpo_and_train_rm_are_taken(tmp_path: Path, capsys, given):
    rows = [{"prompt": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in ROWS]
    command(tmp_path, rows, "--data.chosen_key", "good", "--data.rejected_key", "bad", *given)
    assert "rejected:\n⟦" in capsys.readouterr().out


def test_a_missing_column_of_pairs_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="has no column 'good'; it has 'prompt', 'chosen', 'rejected'"):
        command(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}], "--data.chosen_key", "good")
