"""Every kind of file gives the same samples; folders, splits, mixes and counts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from openrlhf.datasets.sources import find
from openrlhf.datasets.sources.mixing import chosen_rows, parse_probabilities, rows_to_take
from openrlhf.datasets.utils import blending_datasets
from openrlhf.errors import UserError
from tests.datasets.conftest import pairs, write_jsonl

ROWS = pairs(5)


def write_as(kind: str, path: Path) -> Path:
    """Writes ROWS as a file (or folder) of a kind."""
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = pa.Table.from_pylist(ROWS)
    file = path / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text(text)
    elif kind.lower().endswith(".gz"):
        file.write_bytes(gzip.compress(write_as(kind[:-3], path).read_bytes()))
        file.with_suffix("").unlink()
    elif kind.lower().endswith(".zst"):
        file.write_bytes(zstandard.compress(write_as(kind[:-4], path).read_bytes()))
        file.with_suffix("").unlink()
    elif kind == "json":
        file.write_text(json.dumps(ROWS, indent=1))
    elif kind == "data.json":
        file.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif kind == "lines.json":
        file.write_text(text)
    elif kind == "lists.json":
        file.write_text("".join(json.dumps({**row, "data": [1, 2]}) + "\n" for row in ROWS))
    elif kind in ("csv", "tsv", "TSV"):
        table.to_pandas().to_csv(file, index=False, sep="," if kind == "csv" else "\t")
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, file)
    elif kind == "arrow":
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "stream.arrow":
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(file))
    return file


KINDS = [
    "jsonl", "jsonl.gz", "jsonl.zst", "json", "json.gz", "json.zst", "data.json", "lines.json", "lines.json.zst",
    "lists.json", "csv", "tsv", "TSV", "jsonl.GZ", "TSV.ZST", "parquet", "arrow", "stream.arrow", "saved",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_samples(kind: str, tmp_path: Path, prepare):
    expected = prepare(write_jsonl(tmp_path / "expected.jsonl", ROWS))
    found = prepare(write_as(kind, tmp_path))
    assert [found[i][0].tolist() for i in range(5)] == [expected[i][0].tolist() for i in range(5)]


def test_text_files_give_a_row_a_line(tmp_path: Path, prepare):
    path = tmp_path / "book.txt"
    path.write_text("One line.\n\nAnother.\n", encoding="utf-8")
    found = prepare(path, pretrain_mode=True)
    assert (len(found), found.sample_name(1)) == (2, f"{path}:3")


def test_a_folder_gives_the_files_of_its_split(tmp_path: Path, prepare):
    write_jsonl(tmp_path / "d/train-0.jsonl", pairs(2))
    write_jsonl(tmp_path / "d/train-1.jsonl", pairs(3))
    write_jsonl(tmp_path / "d/test.jsonl", pairs(1))
    assert len(prepare(tmp_path / "d")) == 5
    assert len(prepare(tmp_path / "d", dataset_split="test")) == 1


def test_a_subfolder_is_named_behind_an_at_sign(tmp_path: Path, prepare):
    write_jsonl(tmp_path / "d/more/rows.jsonl", pairs(2))
    assert len(prepare(f"{tmp_path}/d@more")) == 2


def test_a_saved_dict_gives_its_split(tmp_path: Path, prepare, problems):
    parts = {"train": datasets.Dataset.from_list(pairs(3)), "test": datasets.Dataset.from_list(pairs(1))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert len(prepare(tmp_path / "d", dataset_split="test")) == 1
    assert "no split 'dev'; it has 'train', 'test'" in problems(tmp_path / "d", dataset_split="dev")


def test_a_hub_name_is_loaded_with_its_configuration(tmp_path: Path, prepare, monkeypatch):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(find, "hub_can_be_asked", lambda: True)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["main"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(prepare("owner/name@main", dataset_split="train[:5]")) == 5
    assert len(prepare("owner/name@folder")) == 5
    assert asked[0] == (("owner/name", "main"), {"split": "train[:5]"})
    assert asked[1] == (("owner/name",), {"data_dir": "folder", "split": "train"})


def test_sources_are_counted_one_by_one(tmp_path: Path, prepare):
    first, second = write_jsonl(tmp_path / "a.jsonl", pairs(4)), write_jsonl(tmp_path / "b.jsonl", pairs(3))
    report = prepare(f"{first},{second}").report
    assert [(source.num_rows, source.num_samples) for source in report.sources] == [(4, 4), (3, 3)]


def test_max_samples_counts_rows(tmp_path: Path, prepare):
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs(2), {"prompt": "x" * 5000, "completion": "y"}, *pairs(9)])
    found = prepare(path, max_samples=4)
    assert (found.report.num_rows, len(found)) == (4, 3)


def test_a_mix_repeats_and_loses_no_row(tmp_path: Path, prepare):
    first, second = (
        write_jsonl(tmp_path / "a.jsonl", pairs(40)),
        write_jsonl(tmp_path / "b.jsonl", pairs(1500, 100)),
    )
    found = prepare(f"{first},{second}", dataset_probs="0.25,0.75")
    assert [source.num_rows_taken for source in found.report.sources] == [40, 120]
    assert [source.num_rows for source in found.report.sources] == [40, 1500]
    assert len({found.sample_name(i) for i in range(len(found))}) == 160


def test_a_mix_of_at_most_so_many_rows_keeps_its_shares(tmp_path: Path, prepare):
    spec = ",".join(str(write_jsonl(tmp_path / f"{name}.jsonl", pairs(40, 100 * name))) for name in (1, 2))
    found = prepare(spec, dataset_probs="0.25,0.75", max_samples=20)
    assert [source.num_rows_taken for source in found.report.sources] == [5, 15]
    found = prepare(spec, dataset_probs="0.25,0.75", max_samples=200, stopping_strategy="all_exhausted")
    assert [source.num_rows_taken for source in found.report.sources] == [40, 120]
    assert [source.num_rows for source in found.report.sources] == [40, 40], "a row that repeats is one row"


def test_a_mix_depends_on_its_seed_alone(tmp_path: Path, prepare):
    spec = ",".join(str(write_jsonl(tmp_path / name, pairs(30))) for name in ("a.jsonl", "b.jsonl"))
    names = [
        [found.sample_name(i) for i in range(len(found))]
        for found in (prepare(spec, dataset_probs="1,3", seed=seed) for seed in (1, 1, 2))
    ]
    assert names[0] == names[1] != names[2]


def test_shares_are_rounded_so_that_they_add_up():
    weights = parse_probabilities("1,1,1", 3)
    assert weights is not None
    assert rows_to_take([10, 100, 100], weights) == [10, 10, 10]
    assert rows_to_take([3, 7], parse_probabilities("0.3,0.7", 2) or []) == [3, 7]
    assert sorted(set(chosen_rows(50, 50, 1, 0).tolist())) == list(range(50))


@pytest.mark.parametrize(
    ("text", "words"), [("1", "1 numbers for 2"), ("a,b", "by commas"), ("1,0", "above 0"), ("1,1e99999999", "to 1e9")]
)
def test_probabilities_that_are_none_are_refused(text: str, words: str):
    with pytest.raises(UserError, match=words):
        parse_probabilities(text, 2)


def test_blending_gives_every_row_as_it_was_written(tmp_path: Path):
    rows = [
        {"messages": [{"role": "assistant", "tool_calls": [{"arguments": {"a": 1}}]}], "id": 1},
        {"messages": [{"role": "assistant", "tool_calls": [{"arguments": {"b": None}}]}], "tools": "[]"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    blended = blending_datasets(str(path), cache_dir=tmp_path)
    assert [row["messages"] for row in blended] == [row["messages"] for row in rows]
    assert blended[0]["id"] == 1


def test_blending_reads_anew_what_is_damaged_in_the_cache(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    rows = blending_datasets(str(path), cache_dir=tmp_path).to_list()
    (kept,) = tmp_path.glob("rows-*/rows.arrow")
    damaged = bytearray(kept.read_bytes())
    damaged[damaged.index(b"3")] = ord("7")
    kept.write_bytes(damaged)
    assert blending_datasets(str(path), cache_dir=tmp_path).to_list() == rows


def test_blending_reports_counts_and_obeys_them(tmp_path: Path):
    class Strategy:
        said: list[str] = []  # noqa: RUF012

        def print(self, text: str) -> None:
            self.said.append(text)

    spec = ",".join(str(write_jsonl(tmp_path / name, pairs(n))) for name, n in (("a.jsonl", 10), ("b.jsonl", 60)))
    blended = blending_datasets(spec, "0.2,0.8", Strategy(), seed=1, cache_dir=tmp_path)
    assert len(blended) == 50
    assert "10 of 10 rows" in Strategy.said[0]
    assert "40 of 60 rows" in Strategy.said[1]
    again = blending_datasets(spec, "0.2,0.8", None, seed=1, cache_dir=tmp_path)
    assert list(blended) == list(again)
    assert len(blending_datasets(spec, max_count=7, cache_dir=tmp_path)) == 7


def test_a_file_without_a_split_beside_files_with_one_is_not_passed_over(tmp_path: Path, problems):
    for name in ("train.jsonl", "more.jsonl"):
        path = tmp_path / "d" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    assert "files named after a split and others that are not (more.jsonl)" in problems(tmp_path / "d")


def test_a_link_that_may_not_be_followed_is_passed_over_with_the_reason(tmp_path: Path, monkeypatch):
    """As Python up to 3.13 has it; who runs the tests may be root, who may follow any."""
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "locked" / "b.jsonl")
    is_dir = Path.is_dir

    def as_a_user(path: Path) -> bool:
        if path.is_symlink():
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", as_a_user)
    (source,) = find.open_sources(str(tmp_path))
    assert source.skipped == ["b.jsonl (cannot be read: Permission denied)"]
    assert [table.name for table in source.tables] == [str(tmp_path / "a.jsonl")]
