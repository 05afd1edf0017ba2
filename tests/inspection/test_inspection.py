"""The look inside: right numbers, targets to be seen in the terminal and in a real browser."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from rich.console import Console

from openrlhf.batching import FixedSize, TokenBudget
from openrlhf.cli import inspect_data, prepare_data
from openrlhf.config import DataConfig, InspectConfig
from openrlhf.config.schema import build
from openrlhf.datasets.prepared import SAMPLES
from openrlhf.datasets.sft_dataset import SFTDataset, prepare_sft_dataset
from openrlhf.errors import UserError
from openrlhf.inspection.samples import parts_of
from openrlhf.inspection.show import show, write_page
from openrlhf.inspection.statistics import Statistics, statistics_of
from tests.helpers.browser import CHROMIUM, in_browser
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

TOKENIZER = tiny_tokenizer(CHATML)
EVIL = "Ça va? 🙂 </script><script>document.title='x'</script>"


def rows(count: int) -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{EVIL} {'x ' * i}"}]}
        for i in range(count)
    ]


@pytest.fixture
def dataset(tmp_path: Path) -> SFTDataset:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(30)))
    return prepare_sft_dataset(DataConfig(dataset=str(path), cache_dir=str(tmp_path / "cache")), TOKENIZER)


def statistics_with(dataset: SFTDataset, layout: FixedSize | TokenBudget, packed: bool = False) -> Statistics:
    return statistics_of(dataset, layout, batch_size=8, packed=packed, num_data_ranks=2, seed=1, max_epochs=3)


def test_counts_and_percentiles(dataset: SFTDataset):
    found = statistics_with(dataset, FixedSize(2))
    lengths = np.array([len(dataset[i][0]) for i in range(30)])
    assert (dataset.report.num_samples, dataset.report.num_tokens) == (30, lengths.sum())
    assert dataset.report.num_target_tokens == sum(int(dataset[i][2].sum()) for i in range(30))
    assert (found.length_percentiles[0], found.length_percentiles[100]) == (lengths.min(), lengths.max())
    assert sum(found.bin_counts) == 30
    assert (found.steps_per_epoch, found.num_steps) == (4, 12)


def test_padding_and_fill(dataset: SFTDataset):
    padded = statistics_with(dataset, FixedSize(4))
    packed = statistics_with(dataset, TokenBudget(400, packed=True), packed=True)
    assert padded.useful_share < 1
    assert padded.fill_share is None
    assert packed.useful_share == 1
    assert 0.3 < packed.fill_share <= 1


def test_first_step_holds_each_of_its_samples_once(dataset: SFTDataset):
    found = statistics_with(dataset, FixedSize(2))
    numbers = [number for micro_step in found.first_step for samples in micro_step for number in samples]
    assert len(numbers) == len(set(numbers)) == 8


def test_pieces_are_the_whole_text_and_characters_are_whole(dataset: SFTDataset):
    (part,) = parts_of(dataset, TOKENIZER, 3)
    pieces = part.pieces
    assert "".join(piece.text for piece in pieces) == TOKENIZER.decode(dataset[3][0])
    assert "🙂" in [piece.text.strip() for piece in pieces]
    assert "".join(piece.text for piece in pieces if piece.is_target) == f"{EVIL} x x x <|im_end|>"


@pytest.mark.parametrize("colours", [True, False])
def test_targets_can_be_told_in_the_terminal(dataset: SFTDataset, colours: bool):
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=colours, color_system="standard" if colours else None)
    show(console, dataset, TOKENIZER, statistics_with(dataset, FixedSize(2)), num_rows=1)
    printed = out.getvalue()
    assert ("\x1b[1;32m" if colours else "⟦Ça va? 🙂") in printed
    assert ("\x1b[1;30;42m<|im_end|>" if colours else "<|im_end|>⟧") in printed
    assert "rows.jsonl:" in printed


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_the_page_works_in_a_real_browser(dataset: SFTDataset, tmp_path: Path):
    page = tmp_path / "report.html"
    write_page(page, dataset, TOKENIZER, statistics_with(dataset, FixedSize(2)))
    shown = in_browser(page, tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in shown
    assert "row 1 of 30 shown" in shown
    assert shown.count('class="bar"') == sum(1 for _ in statistics_with(dataset, FixedSize(2)).bin_counts)
    assert '<span class="target special" data-about="token' in shown
    assert "<title>What will be trained</title>" in shown
    picture = tmp_path / "page.png"
    in_browser(page, tmp_path, f"--screenshot={picture}", "--window-size=1200,900")
    assert picture.stat().st_size > 20_000


def test_the_page_asks_nothing_of_the_network(dataset: SFTDataset, tmp_path: Path):
    page = tmp_path / "report.html"
    write_page(page, dataset, TOKENIZER, statistics_with(dataset, FixedSize(2)))
    text = page.read_text()
    assert text.count("</script>") == 1
    assert " src=" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def flags(tmp_path: Path) -> list[str]:
    model = tmp_path / "model"
    TOKENIZER.save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "llama"}')
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(9)))
    return [
        "--model.model_name_or_path", str(model), "--data.dataset", str(data), "--train.batch_size", "4",
        "--ckpt.output_dir", str(tmp_path / "out"), "--ckpt.path", str(tmp_path / "ckpt"),
        "--data.cache_dir", str(tmp_path / "cache"),
    ]  # fmt: skip


def test_the_command_takes_the_flags_of_training(tmp_path: Path, capsys):
    inspect_data.main([*flags(tmp_path), "--show", "2", f"--html={tmp_path / 'report.html'}"])
    printed = capsys.readouterr().out
    assert "3 an epoch" in printed
    assert printed.count("⟦Ça va?") == 2
    assert (tmp_path / "report.html").exists()
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_a_count_that_is_no_number(tmp_path: Path):
    with pytest.raises(UserError, match="--show is 'many'"):
        inspect_data.main([*flags(tmp_path), "--show", "many"])


def test_the_token_budget_is_that_of_all_ranks_of_a_ring():
    values = {"train.max_tokens_per_micro_batch": 100, "ds.ring_attn_size": 4, "ds.packing_samples": True}
    assert inspect_data._batching(build(InspectConfig, values), None)["layout"] == TokenBudget(400, packed=True)


@pytest.mark.parametrize("colours", [True, False])
def test_weights_can_be_told_in_the_terminal(tmp_path: Path, colours: bool):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "weight": 0.5}]
    path = tmp_path / "weighted.jsonl"
    path.write_text(json.dumps({"messages": messages, "weight": 0.2}) + "\n")
    found = prepare_sft_dataset(DataConfig(dataset=str(path), cache_dir=str(tmp_path / "cache")), TOKENIZER)
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=colours, color_system="standard" if colours else None)
    statistics = statistics_with(found, FixedSize(1))
    show(console, found, TOKENIZER, statistics, num_rows=1)
    assert "targets · weight 0.2" in out.getvalue()
    assert ("×0.1" if colours else "⟦Ho<|im_end|>⟧×0.1") in out.getvalue()
    assert "weighted other than 1" in out.getvalue()
    page = tmp_path / "report.html"
    write_page(page, found, TOKENIZER, statistics)
    assert "targets \\u00b7 weight 0.2" in page.read_text()
    assert ",0.1,0,0]" in page.read_text()


def test_prepare_data_leaves_what_a_look_and_a_training_read(tmp_path: Path, capsys):
    prepare_data.main(flags(tmp_path))
    printed = capsys.readouterr().out
    (folder,) = (tmp_path / "cache").glob("*/")
    assert f"prepared in {folder}" in printed
    made_ns = (folder / SAMPLES).stat().st_mtime_ns
    inspect_data.main(flags(tmp_path))
    assert list((tmp_path / "cache").glob("*/")) == [folder]
    assert (folder / SAMPLES).stat().st_mtime_ns == made_ns


def test_another_split_of_the_same_rows_is_no_evaluation(tmp_path: Path):
    given = flags(tmp_path)
    file = given[given.index("--data.dataset") + 1]
    folder, held_out = tmp_path / "folder", tmp_path / "held_out.jsonl"
    folder.mkdir()
    for copy in (folder / "rows.jsonl", held_out):
        copy.write_bytes(Path(file).read_bytes())
    datasets.Dataset.from_list(rows(4)).save_to_disk(str(tmp_path / "saved"))
    for trained, evaluated in ((file, file), (f"{held_out},{file}", file), (folder, folder), (tmp_path / "saved",) * 2):
        both = ["--data.dataset", str(trained), "--eval.dataset", str(evaluated)]
        with pytest.raises(UserError, match=r"has no split 'test' apart from 'train'.*rows that are trained"):
            prepare_data.main([*given, *both, "--eval.split", "test"])
    prepare_data.main([*given, "--eval.dataset", file])  # asked for
    prepare_data.main([*given, "--eval.dataset", str(held_out), "--eval.split", "test"])
    (folder / "rows.jsonl").rename(folder / "train.jsonl")
    held_out.rename(folder / "test.jsonl")
    prepare_data.main([*given, "--data.dataset", str(folder), "--eval.dataset", str(folder), "--eval.split", "test"])
