"""PairDataset and RewardDataset: units, lengths, items, the cache; the loader takes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from openrlhf.batching import FixedSize, MicroBatchFormat, StepSchedule, StepWindowLoader
from openrlhf.config import PairDataConfig
from openrlhf.datasets import RewardDataset
from openrlhf.datasets.pair_numbers import subsets_of
from openrlhf.errors import UserError
from openrlhf.parallel.groups import alone
from tests.datasets.conftest import Prepare, PreparePairs
from tests.datasets.test_pairs import EOS, PAIR, TOKENIZER, texts


def test_a_unit_holds_margin_weight_and_place(prepare_pairs: PreparePairs):
    pair = {"prompt": "Hi?", "chosen": " Ho.", "rejected": " No, never."}
    dataset = prepare_pairs([{**pair, "margin": 1.5, "weight": 0.25}, {**pair, "margin": None}])
    first, second = dataset.unit(0), dataset.unit(1)
    assert (first.weight, first.numbers, second.weight, second.numbers) == (0.25, {"margin": 1.5}, 1.0, {"margin": 0.0})
    assert first.sequences[0].loss_mask.max() == 1, "the weight is the unit's, and counts once"
    assert (Path(first.name).name, Path(second.name).name) == ("pairs.jsonl:1", "pairs.jsonl:2")
    lengths = tuple(len(sequence.input_ids) for sequence in first.sequences)
    assert (dataset.unit_lengths(0), dataset.num_tokens.tolist()) == (lengths, [max(lengths)] * 2)


def test_pairs_and_rows_of_one_file_do_not_share_the_cache(prepare_pairs: PreparePairs, prepare: Prepare, tmp_path):
    of_pairs = prepare_pairs([PAIR])
    of_rows = prepare(tmp_path / "pairs.jsonl", input_key="prompt", output_key="chosen")
    assert of_pairs.fingerprint != of_rows.fingerprint
    assert of_pairs.fingerprint == prepare_pairs([PAIR]).fingerprint
    assert of_pairs.fingerprint != prepare_pairs([PAIR], chosen_key="rejected", rejected_key="chosen").fingerprint
    assert of_pairs.fingerprint != prepare_pairs([{**PAIR, "margin": 1}]).fingerprint


def test_several_blocks_and_processes_keep_both_sides_together(prepare_pairs: PreparePairs):
    rows = [{"prompt": f"Number {i}?", "chosen": f" It is {i}.", "rejected": " No.", "margin": i} for i in range(2500)]
    dataset = prepare_pairs(rows, num_processors=2)
    for row in (0, 499, 500, 1000, 2499):
        unit = dataset.unit(row)
        assert texts(unit)[0] == (f"Number {row}?", f" It is {row}." + EOS)
        assert (unit.numbers, dataset.unit_lengths(row)) == (
            {"margin": float(row)},
            tuple(len(sequence.input_ids) for sequence in unit.sequences),
        )


NESTED = SimpleNamespace(prompt_key="q", chosen_key="good", rejected_key="bad", cache_dir=None)
OF_OPENRLHF = [
    {"q": "Hi?", "good": " Ho.", "bad": " No, never.", "margin": 0.5},
    {"q": "Hi?", "good": " Ho, ho.", "bad": " No."},
]


@pytest.mark.parametrize("args", [NESTED, SimpleNamespace(data=NESTED, model=SimpleNamespace(loss_type="ipo"))])
def test_openrlhfs_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args):
    monkeypatch.setenv("OPENRLHF_CACHE", str(tmp_path))
    given = datasets.Dataset.from_list(OF_OPENRLHF)
    dataset = RewardDataset(given, TOKENIZER, 64, SimpleNamespace(args=args), input_template="Q: {}\nA:")
    assert texts(dataset.unit(0))[0] == ("Q: Hi?\nA:", " Ho." + EOS)
    chosen, chosen_mask, rejected, rejected_mask, margins = dataset.collate_fn([dataset[0], dataset[1]])
    assert margins.tolist() == [0.5, 0.0]
    assert TOKENIZER.decode(rejected[0]) == f"Q: Hi?\nA: No, never.{EOS}"
    assert TOKENIZER.decode(chosen[0][chosen_mask[0].bool()]) == f"Q: Hi?\nA: Ho.{EOS}"
    assert (chosen[0, -1], chosen_mask[0, -1], rejected_mask[1, -1]) == (TOKENIZER.pad_token_id, 0, 0)


def test_an_item_for_dpo_ends_with_the_length_of_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENRLHF_CACHE", str(tmp_path))
    dataset = RewardDataset(OF_OPENRLHF, TOKENIZER, 64, SimpleNamespace(args=NESTED), is_dpo=True)
    chosen, _, rejected, _, length = dataset[0]
    assert (TOKENIZER.decode(chosen[:length]), TOKENIZER.decode(rejected[length:])) == ("Hi?", " No, never." + EOS)


@pytest.mark.parametrize(("more", "said"), [({}, "has no such column"), ({"k": None}, "holds nothing .null. there")])
def test_a_subset_that_a_row_does_not_name_is_told(prepare_pairs: PreparePairs, tmp_path: Path, more: dict, said: str):
    pairs = prepare_pairs([PAIR | {"k": "a"}, PAIR | more])
    with pytest.raises(UserError, match=f"pairs.jsonl:2 {said}"):
        subsets_of(pairs, PairDataConfig(dataset=str(tmp_path / "pairs.jsonl")), "k")


def test_the_loader_makes_micro_batches_of_pairs(prepare_pairs: PreparePairs):
    rows = [{**PAIR, "chosen": f" It is {i}.", "margin": i, "weight": i + 1} for i in range(4)]
    dataset = prepare_pairs(rows)
    schedule, form = StepSchedule(4, 2, seed=1), MicroBatchFormat(packed=True)
    loader = StepWindowLoader(dataset, schedule, FixedSize(2), form, alone(), dataset.collate_fn)
    batches = [batch for window in loader.windows(max_epochs=1) for batch in window.micro_batches]
    assert [batch.sequences_of_units for batch in batches] == [(2, 2), (2, 2)]
    found = [pair for b in batches for pair in zip(b.unit_numbers["margin"].tolist(), b.unit_weights, strict=True)]
    assert sorted(found) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert len(next(iter(loader))) == 5


def test_a_margin_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENRLHF_CACHE", str(tmp_path))
    rows = [{**PAIR, "margin": margin} for margin in (0.0, 0.5, float("nan"))]

    def check(rows: list[dict], **given: bool) -> None:
        of_script = SimpleNamespace(args=SimpleNamespace())
        RewardDataset(datasets.Dataset.from_list(rows), TOKENIZER, 64, of_script).check_margins(**given)

    with pytest.raises(
        UserError, match=r"row 3: the column 'margin' holds no number from .*margin_loss_enable reads it"
    ):
        check(rows)
    check(rows[:2])
    with pytest.raises(UserError, match="no row has another margin than 0: add the column, or leave the flag out"):
        check(rows[:1])
    check(rows[:1], needs_one=False)
