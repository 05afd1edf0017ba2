"""Bad files and bad rows: one clear message each, all of the first thousand rows together, nothing left behind."""

from __future__ import annotations

import gzip
import json
import os

import datasets
import pytest
import zstandard

from openrlhf.datasets.report import BadRows
from openrlhf.datasets.sources import find, readers
from openrlhf.datasets.sources.readers import READERS
from openrlhf.errors import UserError
from tests.datasets.conftest import pairs, write_jsonl


def test_all_problems_of_the_first_thousand_rows_are_told_together(tmp_path, problems):
    rows = [*pairs(3), '{"prompt": "x",', *pairs(500), {"prompt": "only"}, *pairs(100), [1], *pairs(3000)]
    said = problems(write_jsonl(tmp_path / "a.jsonl", rows))
    assert f"{tmp_path}/a.jsonl:4: broken JSON" in said
    assert f"{tmp_path}/a.jsonl:505: no column 'completion'; it has 'prompt'" in said
    assert f"{tmp_path}/a.jsonl:606: list where an object with columns belongs" in said
    assert "--data.max_bad_rows allows 0" in said
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_allowed_bad_rows_are_left_out_and_counted(tmp_path, prepare, problems):
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs(3), "{", {"prompt": "x", "completion": " "}])
    found = prepare(path, max_bad_rows=2)
    assert (len(found), found.report.num_bad_rows) == (3, 2)
    assert any("broken JSON" in line for line in found.report.lines())
    assert "--data.max_bad_rows allows 1" in problems(path, max_bad_rows=1)


def test_one_reason_in_many_rows_is_one_line(tmp_path, problems):
    said = problems(write_jsonl(tmp_path / "a.jsonl", [*pairs(1), *[{"prompt": "x"}] * 800]))
    assert said.count("no column 'completion'") == 1
    assert "and 795 more rows" in said


def test_one_problem_is_one_line_whatever_names_the_rows_have():
    bad_rows = BadRows(max_bad_rows=0)
    for number in range(300):
        bad_rows.add(
            f"a.jsonl:{number}", f"turn 2: the row's template does not print the tool call 'tool_{number}'; no"
        )
    bad_rows.add("a.jsonl:300", "no column 'a'; it has 'b'")
    first, other = bad_rows.lines()
    assert first == (
        "a.jsonl:0, a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4 and 295 more rows: turn 2: the row's template does not "
        "print the tool call 'tool_0'; no (the same of 'tool_1', 'tool_2', 'tool_3', 'tool_4', 'tool_5' and 294 more)."
    )
    assert other == "a.jsonl:300: no column 'a'; it has 'b'."


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.jsonl", b"{not json}\n", "a.jsonl:1: broken JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: not UTF-8"),
        ("a.jsonl", b'{"text": "a\x01b"}\n', "broken JSON: Invalid control character"),
        ("a.json", b'[{"text": "x"},\n {"text" "y"}]', "a.json:2: broken JSON"),
        ("a.json", b'{"a": 1,\n "b": 2}', "neither a list of rows"),
        ("a.csv", b"text,b\nx,1,2\n", "a.csv:2: more fields than the header has columns"),
        ("a.csv", b"text,b\nx\n", "a.csv:2: fewer fields than the header has columns"),
        ("a.csv", b'text\n"x\n', "a.csv: broken CSV after line 1"),
        ("a.parquet", b"PAR1 no", "a.parquet cannot be read"),
        ("a.arrow", b"no arrow", "a.arrow cannot be read"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz cannot be read"),
        ("a.jsonl.zst", b"no zstd", "a.jsonl.zst cannot be read"),
        ("a.docx", b"x", "is of an unknown kind"),
    ],
)
def test_a_file_that_cannot_be_read(name: str, content: bytes, words: str, tmp_path, problems):
    path = tmp_path / name
    path.write_bytes(content)
    assert words in problems(path)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("end", [150_000, -1, 3], ids=["in the middle", "before the last byte", "in the header"])
def test_a_compressed_file_that_is_cut_off_is_refused(suffix: str, end: int, tmp_path, problems):
    lines = write_jsonl(tmp_path / "rows.txt", ({"text": os.urandom(40).hex()} for _ in range(8000))).read_bytes()
    whole = gzip.compress(lines) + gzip.compress(lines)
    if suffix == "zst":
        with_checksum = zstandard.ZstdCompressor(write_checksum=True)
        whole = zstandard.compress(lines) + with_checksum.compress(lines)
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(whole[:end])
    assert f"a.jsonl.{suffix} cannot be read: Compressed file ended" in problems(tmp_path / f"a.jsonl.{suffix}")


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path, problems):
    write_jsonl(tmp_path / "train.jsonl", pairs(1))
    assert problems(tmp_path / "trian.jsonl").endswith(f"did you mean {tmp_path}/train.jsonl?")
    assert "*.jsonl is a pattern, and patterns are not expanded" in problems(tmp_path / "*.jsonl")
    assert "there is no folder" in problems(tmp_path / "no/where.jsonl")
    assert "has no 'sub'; it has train.jsonl" in problems(f"{tmp_path}@sub")


def test_all_missing_sources_are_told_together(tmp_path, problems):
    said = problems(f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl")
    assert "a.jsonl does not exist" in said
    assert "b.jsonl does not exist" in said


def test_a_hub_name_that_cannot_be_loaded(problems, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setattr(find, "hub_can_be_asked", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert "'owner/name' is no local file or folder, and could not be loaded from the hub: no network" in problems(
        "owner/name"
    )


def test_a_folder_of_mixed_shapes_names_the_files_and_columns(tmp_path, problems):
    write_jsonl(tmp_path / "d/a.jsonl", pairs(1))
    write_jsonl(tmp_path / "d/b.jsonl", [{"text": "x"}])
    said = problems(tmp_path / "d")
    assert "b.jsonl (text) differs from" in said
    assert "it has 'text' and lacks 'completion', 'prompt'" in said


def test_masks_of_two_conventions_in_a_folder_are_told_the_format(tmp_path, problems):
    for name, mask in (("a", [0, 1, 1, 0]), ("b", [0, 0, 1, 1])):
        write_jsonl(tmp_path / f"d/{name}.jsonl", [{"input_ids": [5, 6, 7, 8], "loss_mask": mask}])
    said = problems(tmp_path / "d")
    assert "Say --data.format tokenized_by_token" in said
    assert "a folder of its own" not in said


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, problems, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    read = READERS["jsonl"]

    def read_and_append(source):
        yield from read(source)
        with source.open("a") as file:
            file.write("{}\n")

    monkeypatch.setitem(READERS, "jsonl", read_and_append)
    assert "changed while it was read" in problems(path)


def test_a_row_of_ten_megabytes_is_dropped_quickly_and_counted(tmp_path, prepare):
    big = {"prompt": "x" * 10_000_000, "completion": "y"}
    found = prepare(write_jsonl(tmp_path / "a.jsonl", [big, *pairs(2)]))
    assert (len(found), found.report.left_out["longer than max_len"]) == (2, 1)


def test_no_row_that_can_be_trained_stops_the_run(tmp_path, problems):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(3))
    assert "None of the 3 rows can be trained: 3 longer than max_len. Raise --data.max_len (now 4)" in problems(
        path, max_len=4
    )
    users = write_jsonl(tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    assert "1 no assistant turn" in problems(users)


def test_a_misspelt_column_is_told_with_those_that_exist(tmp_path, problems):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(3))
    said = problems(path, input_key="promt", output_key="completion")
    assert f"{path}:1 has no column 'promt'; it has 'prompt', 'completion'" in said


def test_a_file_of_several_splits_is_not_read_as_one_of_them(tmp_path, prepare, problems):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": pairs(2), "test": pairs(1)}, indent=1))
    assert "holds rows under several names (train, test): write each" in problems(path)
    path.write_text(json.dumps({"data": pairs(1), "examples": pairs(3)}))
    assert "holds rows under several names (data, examples): write each" in problems(path)
    path.write_text(json.dumps({"data": [], "examples": pairs(3)}))
    assert len(prepare(path)) == 3
    path.write_text(json.dumps({"train": pairs(2), "test": []}, indent=1))
    assert len(prepare(path)) == 2


@pytest.mark.parametrize("kind", ["a generator", "a stream of datasets"])
def test_a_stream_of_rows_is_refused_before_it_is_read(kind: str, tmp_path):
    def rows():
        raise AssertionError("it is read")
        yield

    stream = rows() if kind == "a generator" else datasets.IterableDataset.from_generator(rows)
    with pytest.raises(UserError, match="is a stream"):
        find.source_of(stream)


def test_without_a_network_a_hub_name_is_refused_at_once(problems, monkeypatch):
    monkeypatch.setattr(find, "hub_can_be_asked", lambda: False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "'owner/name' is no local file or folder, and the hub cannot be reached" in problems("owner/name")


def test_a_line_that_no_row_can_be_is_refused_before_it_is_read(tmp_path, problems, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "' + "a" * (1 << 20) + '", "completion": "b"}\n')
    assert "has a line of more than 1 MiB: write a row a line" in problems(path)
