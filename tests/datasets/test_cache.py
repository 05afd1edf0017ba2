"""Prepared once: the key sees every change, one process prepares while others wait on the disk, halves are not seen."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from tokenizers.normalizers import Lowercase

from openrlhf.datasets import cache, prepared
from openrlhf.datasets.cache import prepared_folder
from openrlhf.datasets.fingerprint import data_fingerprint, tokenizer_fingerprint
from openrlhf.datasets.prepared import SAMPLES
from openrlhf.datasets.sample_writer import SampleWriter
from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.errors import UserError
from openrlhf.processes import this_process
from tests.datasets.conftest import pairs, write_jsonl
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

FORK = multiprocessing.get_context("fork")


def same(folder: Path) -> bool:
    return (folder / "done").exists()


def test_a_second_start_reads_what_the_first_made(tmp_path, prepare):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    first = prepare(path)
    made_ns = (first.samples.folder / SAMPLES).stat().st_mtime_ns
    second = prepare(path)
    assert second.fingerprint == first.fingerprint
    assert (second.samples.folder / SAMPLES).stat().st_mtime_ns == made_ns


def test_the_fingerprint_sees_every_change(tmp_path, prepare):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    found = {
        "plain": prepare(path).fingerprint,
        "template": prepare(path, input_template="Q: {}").fingerprint,
        "length": prepare(path, max_len=100).fingerprint,
        "rows": prepare(path, max_samples=3).fingerprint,
        "chat": prepare(path, apply_chat_template=True).fingerprint,
        "tokenizer": prepare(path, tokenizer=tiny_tokenizer(CHATML, vocab_size=400)).fingerprint,
        "chat template": prepare(path, tokenizer=tiny_tokenizer(CHATML + " ")).fingerprint,
    }
    write_jsonl(path, pairs(6))
    found["content"] = prepare(path).fingerprint
    assert len(set(found.values())) == len(found)


def test_a_tokenizers_fingerprint_sees_vocabulary_special_tokens_and_template():
    found = [
        tokenizer_fingerprint(tokenizer)
        for tokenizer in (
            None,
            tiny_tokenizer(CHATML),
            tiny_tokenizer(CHATML + " "),
            tiny_tokenizer(CHATML, vocab_size=400),
            tiny_tokenizer(CHATML, pad_is_eos=True),
        )
    ]
    assert found[0] == ""
    assert len(set(found)) == len(found)
    assert tokenizer_fingerprint(tiny_tokenizer(CHATML)) == found[1]


def test_the_fingerprint_sees_how_a_tokenizer_splits(tmp_path, prepare):
    """Two tokenizers of one vocabulary may give other ids."""
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    plain, lowered = tiny_tokenizer(CHATML), tiny_tokenizer(CHATML)
    lowered.backend_tokenizer.normalizer = Lowercase()
    assert tokenizer_fingerprint(plain) == tokenizer_fingerprint(lowered)
    as_text = tiny_tokenizer(CHATML)
    as_text.split_special_tokens = True
    assert len({prepare(path, tokenizer=one).fingerprint for one in (plain, lowered, as_text)}) == 3


def test_content_counts_not_times(tmp_path, prepare):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    before = prepare(path).fingerprint
    os.utime(path, (1, 1))
    assert prepare(path).fingerprint == before


def test_content_counts_not_the_place_but_messages_name_it(tmp_path, prepare):
    """A checkpoint goes on where its data were moved; a row is called by where it lies now."""
    first, moved = (write_jsonl(tmp_path / name, pairs(5)) for name in ("a.jsonl", "b.jsonl"))
    before, after = prepare(first), prepare(moved)
    assert before.fingerprint == after.fingerprint
    assert [each.samples.table_names for each in (before, after)] == [[f"{first}:"], [f"{moved}:"]]
    assert prepare(first, dataset_probs="1").fingerprint != before.fingerprint
    texts = [write_jsonl(tmp_path / name, [{"text": "coffee with oat milk"}]) for name in ("a.txt", "c.jsonl")]
    found = [prepare(path, pretrain_mode=True).fingerprint for path in texts]
    assert found[0] != found[1], "bytes that are read in another way are other rows"


def test_a_file_that_changes_once_it_is_known_is_refused(tmp_path, prepare, monkeypatch):
    """What was read would else stay under the name of what was hashed."""
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))

    def hashed_then_changed(*words):
        found = data_fingerprint(*words)
        write_jsonl(path, pairs(6))
        return found

    with monkeypatch.context() as change:
        change.setattr("openrlhf.datasets.prepare.data_fingerprint", hashed_then_changed)
        with pytest.raises(UserError, match="changed while it was read"):
            prepare(path)
    write_jsonl(path, pairs(5))
    assert len(prepare(path)) == 5


def test_a_damaged_folder_is_made_anew(tmp_path, prepare):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    samples = prepare(path).samples.folder / SAMPLES
    samples.write_bytes(samples.read_bytes()[:100])
    assert len(prepare(path)) == 5
    assert samples.stat().st_size > 100


def test_many_processes_make_it_once(tmp_path):
    def start(number: int) -> None:
        def make(folder: Path) -> None:
            (tmp_path / f"made-{number}").touch()
            time.sleep(0.5)
            (folder / "done").touch()

        assert same(prepared_folder(tmp_path, "key", make, same))

    processes = [FORK.Process(target=start, args=(number,)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)
    assert [process.exitcode for process in processes] == [0] * 6
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("key")) == ["key"]


def test_who_waits_fails_with_the_makers_words(tmp_path):
    def make_badly(folder: Path) -> None:
        time.sleep(0.6)
        raise UserError("row 3 is broken")

    def start() -> None:
        with pytest.raises(UserError, match="row 3 is broken"):
            prepared_folder(tmp_path, "key", make_badly, same)

    processes = [FORK.Process(target=start) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not (tmp_path / "key").exists()


def test_a_dead_makers_lock_is_taken_over(tmp_path):
    def die(folder: Path) -> None:
        os._exit(9)

    maker = FORK.Process(target=prepared_folder, args=(tmp_path, "key", die, same))
    maker.start()
    maker.join(timeout=30)
    assert (tmp_path / "key.lock").exists()
    assert same(prepared_folder(tmp_path, "key", lambda folder: (folder / "done").touch(), same))


def test_a_lock_of_another_machine_is_taken_over_when_nobody_touches_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "STALE_SECONDS", 0.5)
    (tmp_path / "key.lock").write_text("another-machine 1")
    assert same(prepared_folder(tmp_path, "key", lambda folder: (folder / "done").touch(), same))


ME = this_process()


@pytest.mark.parametrize(
    ("maker", "is_gone"),
    [
        (ME, False),
        (ME.replace(f"-{os.getpid()}-", "-99999999-"), True),
        (f"{ME}0", True),  # an earlier process, whose number has come again
        (f"{'0' * 12}-99999999-1", False),  # in another container of this machine, which has its name
    ],
    ids=["alive", "gone", "number come again", "another container"],
)
def test_a_maker_is_dead_only_where_its_process_can_be_seen_to_be(tmp_path, maker, is_gone):
    lock, made = tmp_path / "key.lock", tmp_path / f"key.making-{maker}-0a"
    lock.write_text(maker)
    made.mkdir()
    cache._remove_leftovers(tmp_path)
    assert made.exists() is not is_gone
    assert cache._Wait(lock, tmp_path / "key.failed")._is_stale() is is_gone


@pytest.mark.parametrize("name", ["OPENRLHF_CACHE", "XDG_CACHE_HOME"])
def test_an_empty_variable_names_no_folder(tmp_path, monkeypatch, name):
    monkeypatch.delenv("OPENRLHF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "")
    assert cache.open_cache_dir(None) == tmp_path / ".cache/openrlhf/datasets"


def test_a_cache_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--data.cache_dir"):
        cache.open_cache_dir(tmp_path / "file" / "folder")


def test_several_processes_give_the_same_samples(tmp_path, prepare):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(2500))
    alone = prepare(path)
    together = prepare(path, num_processors=3, cache_dir=str(tmp_path / "other"))
    assert together.fingerprint == alone.fingerprint
    assert (together.samples.folder / SAMPLES).read_bytes() == (alone.samples.folder / SAMPLES).read_bytes()


def strategy(tmp_path: Path, **names) -> SimpleNamespace:
    return SimpleNamespace(args=SimpleNamespace(cache_dir=str(tmp_path / "cache"), **names))


@pytest.mark.parametrize("nested", [True, False])
def test_the_contracts_class_reads_its_columns_from_args(nested: bool, tmp_path):
    names = SimpleNamespace(input_key="q", output_key="a", apply_chat_template=False, tokenizer_chat_template=None)
    args = {"data": names} if nested else vars(names)
    rows = datasets.Dataset.from_list([{"q": "A?", "a": " B"}, {"q": "C?", "a": " D"}])
    found = SFTDataset(rows, tiny_tokenizer(), 64, strategy(tmp_path, **args), input_template="Q: {}")
    ids, attention, mask = found[1]
    assert tiny_tokenizer().decode(ids) == "Q: C? D<|endoftext|>"
    assert (ids.dtype, attention.tolist(), mask.shape) == (torch.int64, [1] * len(ids), ids.shape)
    assert tiny_tokenizer().decode(ids[1:][mask[:-1] == 1]) == " D<|endoftext|>"
    assert found.sample_name(1) == "the data set, row 2"


def test_a_loaded_data_set_is_known_by_its_content(tmp_path):
    rows = [{"q": "A?", "a": " B"}]
    args = strategy(tmp_path, input_key="q", output_key="a")
    found = [
        SFTDataset(each, tiny_tokenizer(), 64, args).fingerprint
        for each in (
            datasets.Dataset.from_list(rows),
            datasets.Dataset.from_list([{"q": "x", "a": "y"}, *rows]).select([1]),
            datasets.Dataset.from_list([{"q": "A?", "a": " C"}]),
        )
    ]
    assert found[0] == found[1] != found[2]


def test_collate_pads_on_the_right_by_length(tmp_path):
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    rows = [{"prompt": "A", "completion": "B"}, {"prompt": "A longer one", "completion": " B"}]
    found = SFTDataset(rows, tokenizer, 64, strategy(tmp_path))
    ids, attention, mask = found.collate_fn([found[0], found[1]])
    first = len(found[0][0])
    assert ids.shape == attention.shape == mask.shape == (2, len(found[1][0]))
    assert ids[0, first:].tolist() == [tokenizer.eos_token_id] * (ids.shape[1] - first)
    assert attention[0].tolist() == [1] * first + [0] * (ids.shape[1] - first)
    assert mask[0, first - 2].item() == 1
    assert mask[0, first - 1 :].sum().item() == 0


def test_lengths_and_targets_are_known_without_reading_samples(tmp_path, prepare):
    found = prepare(write_jsonl(tmp_path / "a.jsonl", pairs(7)))
    assert found.num_tokens.dtype == found.num_target_tokens.dtype == "int32"
    assert found.num_tokens.tolist() == [len(found[i][0]) for i in range(7)]
    assert found.num_target_tokens.tolist() == [int(found[i][2].sum()) for i in range(7)]


def test_it_can_be_sent_to_loader_workers(tmp_path, prepare):
    found = prepare(write_jsonl(tmp_path / "a.jsonl", pairs(3)))
    assert pickle.loads(pickle.dumps(found))[2][0].tolist() == found[2][0].tolist()
    with pytest.raises(IndexError):
        found[3]


@pytest.mark.parametrize(("overlong", "kept", "cut"), [("drop", 1, 0), ("truncate", 2, 1)])
def test_overlong_samples(overlong: str, kept: int, cut: int, tmp_path, prepare):
    long = {"prompt": "Count. ", "completion": "one two three four five six seven eight nine ten " * 4}
    hopeless = {"prompt": long["completion"], "completion": "ten"}
    found = prepare(write_jsonl(tmp_path / "a.jsonl", [*pairs(1), long, hopeless]), overlong=overlong, max_len=40)
    assert (len(found), found.report.num_cut) == (kept, cut)
    if cut:
        ids, _, mask = found[1]
        assert len(ids) == 40
        assert ids[-1] != tiny_tokenizer().eos_token_id
        assert mask[-1] == 0
        assert found.report.left_out == {"no target token within max_len": 1}
    else:
        assert found.report.left_out == {"longer than max_len": 2}


def test_overlong_samples_can_stop_the_run(tmp_path, problems):
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs(2), {"prompt": "x " * 90, "completion": "y"}])
    assert "a.jsonl:3: " in (said := problems(path, overlong="error", max_len=40))
    assert "do not fit into --data.max_len 40" in said


def test_masks_that_stand_beside_their_tokens_are_seen_and_told(tmp_path, prepare):
    rows = [{"input_ids": [5, 6, 7, 8], "loss_mask": mask} for mask in ([0, 1, 1, 0], [0, 0, 1, 1])]
    beside = prepare(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [beside[i][2].tolist() for i in range(2)] == [[1, 1, 0, 0], [0, 1, 1, 0]]
    assert "entry t is taken to judge token t itself" in beside.report.notes[0]
    before = prepare(write_jsonl(tmp_path / "b.jsonl", rows[:1]))
    assert before[0][2].tolist() == [0, 1, 1, 0]


def test_the_tokenizer_keeps_the_template_it_was_trained_with(tmp_path, prepare):
    tokenizer = tiny_tokenizer()
    rows = [{"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]}]
    found = prepare(write_jsonl(tmp_path / "a.jsonl", rows), tokenizer=tokenizer, tokenizer_chat_template="chatml")
    assert tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False) == tokenizer.decode(found[0][0])
    assert (found.report.turn_end, found.report.turn_end_id) == (
        "<|im_end|>",
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    assert "generation must stop at both" in found.report.notes[0]


def test_a_failure_is_forgotten_when_the_next_attempt_works(tmp_path):
    def refuse(folder: Path) -> None:
        raise UserError("row 3 is broken")

    with pytest.raises(UserError):
        prepared_folder(tmp_path, "key", refuse, same)
    assert same(prepared_folder(tmp_path, "key", lambda folder: (folder / "done").touch(), same))
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_damaged_block_of_data_too_large_to_be_read_at_the_start_is_named(tmp_path, prepare, monkeypatch):
    """A block is what a worker encodes at a time: 512 rows."""
    path = write_jsonl(tmp_path / "a.jsonl", pairs(1100))
    folder = prepare(path).samples.folder
    data = bytearray((folder / SAMPLES).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / SAMPLES).write_bytes(data)
    monkeypatch.setattr(prepared, "MAX_BYTES_AT_START", 1000)
    samples = prepare(path).samples
    assert len(samples.sample(0).input_ids) > 0
    with pytest.raises(UserError, match=r"are damaged \(checksum of block 1\): remove that folder"):
        samples.sample(600)


def test_a_full_disk_of_the_cache_is_said_in_words(tmp_path, prepare, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    monkeypatch.setattr(SampleWriter, "append", no_space)
    with pytest.raises(UserError, match="cannot be written to .* make room there, or choose another folder"):
        prepare(path)
    assert [entry.name for entry in tmp_path.rglob("*.making-*")] == []


def no_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
