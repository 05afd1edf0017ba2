"""Whole runs that have too little memory: refused before they begin, or going on."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM

from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.config import DeepspeedConfig, SFTConfig
from openrlhf.models.loading import facts_of
from openrlhf.run.memory_estimate import RunMemory, Way
from openrlhf.run.training_run import TrainingRun
from openrlhf.strategy import DeepspeedStrategy
from tests.helpers.ranks import RankError, RankPool
from tests.helpers.workbench import flags, read_metrics, save_model, save_rows, step_lines
from tests.runs.cases import (
    run,
    run_as_command,
    run_beside_free_memory,
    run_in_less_address_space,
    run_of_which_a_rank_is_short,
    run_where_samples_fit,
    run_whose_update_fails,
    said_by_run,
)
from tests.runs.test_resume import assert_same_run

POOLS = {1: "one_rank", 2: "two_ranks"}
ROOM = 60  # tokens: two of the short rows, and not the long one
LONG_ROW, TOKENS_OF_LONGER = 8, 326


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    save_model(folder / "model")
    save_model(folder / "wide", intermediate_size=4_096, num_hidden_layers=4)
    rows = save_rows(folder / "rows.jsonl", 22).read_text().splitlines()
    long_row = {"question": "sum of", "answer": "three and four is seven " * 20}
    longer_row = {"question": "sum of", "answer": "three and four is seven " * 64}
    rows.insert(LONG_ROW - 1, json.dumps(long_row))
    (folder / "with_a_long_row.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "long.jsonl").write_text((json.dumps(longer_row) + "\n") * 4)
    return folder


# --- refused before the first step


def estimated(bench, way: Way, num_tokens: int = 0, num_ranks: int = 1, on_cpu: bool = True):
    facts = facts_of(str(bench / "wide"), "fp32", False)
    config = SFTConfig(ds=DeepspeedConfig(param_dtype="fp32"))
    return RunMemory(config, facts, num_ranks, on_cpu).of(way, num_tokens)


REMEDIES = [
    (64, "cpu", Way(1, False, False), Way(3, False, False), "--ds.zero_stage 3 would fit"),
    (1, "cuda", Way(2, False, False), Way(0, False, False), "--ds.zero_stage 0 would fit"),
]


@pytest.mark.parametrize(("ranks", "device", "asked", "fitting", "remedy"), REMEDIES, ids=["stage", "no stage"])
def test_a_model_that_cannot_fit_is_refused_before_data_are_prepared(
    ranks, device, asked, fitting, remedy, one_rank, bench
):
    needed, enough = (
        estimated(bench, way, num_ranks=ranks, on_cpu=device == "cpu").device_bytes for way in (asked, fitting)
    )
    free = int(enough / 0.89)
    assert needed > 1.16 * free
    out, settings = bench / f"refused-{device}-{ranks}", dict(ds__zero_stage=asked.zero_stage, train__batch_size=64)
    words = flags(bench / "wide", bench / "long.jsonl", out, data__cache_dir=out / "cache", **settings)
    ((code, text),) = one_rank.run(run_beside_free_memory, words, free, 2**40, device, ranks)
    assert code == 2
    assert "it has no room for a single token" in text
    assert remedy in text
    assert not out.exists(), "data were prepared for a run that cannot be"


def test_a_sample_for_which_there_is_no_room_is_named(one_rank, bench):
    needed, enough = (estimated(bench, Way(2, False, recomputes), TOKENS_OF_LONGER) for recomputes in (False, True))
    free = int(enough.device_bytes / 0.89)
    assert needed.device_bytes > 1.16 * free
    out = bench / "no-room"
    words = flags(bench / "wide", bench / "long.jsonl", out, data__max_len=512)
    ((code, text),) = one_rank.run(run_beside_free_memory, words, free)
    assert code == 2
    assert f"long.jsonl:1 of {TOKENS_OF_LONGER} tokens" in text
    assert "--model.gradient_checkpointing_enable would fit" in text
    assert not out.exists()


CONTRADICTIONS = [
    (dict(model__compile_layers=True), "--model.compile_layers needs weights that are whole on every rank"),
    (dict(ds__tensor_parallel_size=2), "--ds.tensor_parallel_size 2 does not go with --ds.zero_stage 3"),
]


@pytest.mark.parametrize(("said", "other"), CONTRADICTIONS, ids=["compiled layers", "tensor parallelism"])
def test_settings_that_leave_no_stage_are_refused_with_the_reason_against_each(said, other, two_ranks, bench):
    out = bench / f"contradiction-{next(iter(said))}"
    words = flags(bench / "model", bench / "rows.jsonl", out, train__micro_batch_size=None, ds__zpg=2, **said)
    ended = two_ranks.run(run_beside_free_memory, words, 2**40)
    assert [code for code, _ in ended] == [2, 2]
    (text,) = [text for _, text in ended if text]
    assert "--ds.zpg 2 needs --ds.zero_stage 3" in text
    assert other in text
    assert not out.exists()


# --- a sample that does not fit alone


@pytest.fixture(scope="module")
def losses_without_the_long_row(one_rank, bench):
    return _losses_without_the_long_row(one_rank, bench, "skipped-1")


def _losses_without_the_long_row(ranks, bench, name):
    out = bench / name
    words = flags(bench / "model", bench / "with_a_long_row.jsonl", out, data__overlong_memory="skip")
    ended = ranks.run(run_where_samples_fit, words, ROOM)
    assert {code for code, _ in ended} == {0}, ended
    left_out = [line["left_out"] for line in read_metrics(out) if "left_out" in line]
    assert [[name.rpartition("/")[2] for name in names] for names in left_out] == [
        [f"with_a_long_row.jsonl:{LONG_ROW}"]
    ]
    return [line["loss"] for line in step_lines(out)]


def test_a_sample_that_does_not_fit_alone_is_left_out_where_that_is_asked_for(losses_without_the_long_row):
    assert len(losses_without_the_long_row) == 6


def test_two_ranks_leave_it_out_of_the_same_step(losses_without_the_long_row, two_ranks, bench):
    found = _losses_without_the_long_row(two_ranks, bench, "skipped-2")
    assert found == pytest.approx(losses_without_the_long_row, rel=1e-6)


def test_it_ends_the_run_where_nothing_is_said(one_rank, bench):
    out = bench / "stopped"
    ((code, text),) = one_rank.run(
        run_where_samples_fit, flags(bench / "model", bench / "with_a_long_row.jsonl", out), ROOM
    )
    assert code == 3
    assert f"with_a_long_row.jsonl:{LONG_ROW}" in text
    assert "--data.overlong_memory skip" in text


# --- before the first step


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (
            AutoModelForCausalLM,
            "from_pretrained",
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ),
        (DeepspeedStrategy, "prepare", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
        (TrainingRun, "choose_layout", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
        (AutoModelForCausalLM, "from_pretrained", RuntimeError("can't start new thread")),
    ],
    ids=["weights", "engine", "layout", "thread"],
)
def test_memory_that_runs_out_elsewhere_is_told_in_words(bench, tmp_path, monkeypatch, owner, name, error):
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(owner, name, refused)
    code, said = run_as_command(flags(bench / "model", bench / "rows.jsonl", tmp_path))
    assert code == 3, said
    assert "memory ran out in" in said
    assert str(error) in said
    assert "What helps:" in said
    assert "`ulimit -v`" in said
    assert "Traceback" not in said


# --- an update, a rank alone, an allocator


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_whose_update_runs_out_of_memory_goes_on_from_its_checkpoint(ranks, request, bench):
    pool, num_steps = request.getfixturevalue(POOLS[ranks]), 6
    unbroken, broken = bench / f"unbroken-{ranks}", bench / f"update-{ranks}"
    saves = dict(ckpt__save_steps=3, ckpt__background_save=False)
    pool.run(run, flags(bench / "model", bench / "rows.jsonl", unbroken, **saves))
    words = flags(bench / "model", bench / "rows.jsonl", broken, **saves)
    ended = pool.run(run_whose_update_fails, words, 5)
    assert [code for code, _ in ended] == [2] * ranks
    assert "in the update of step 5" in "".join(text for _, text in ended)
    newest, problems = CheckpointStore(broken / "checkpoints").newest_whole()
    assert newest is not None
    assert (newest.name, problems) == ("global_step3", [])
    pool.run(run, [*words, "--ckpt.load_enable"])
    assert_same_run(unbroken, broken, num_steps)


def test_a_ring_of_which_one_rank_runs_out_of_memory_ends_and_goes_on_in_smaller_pieces(two_ranks, bench):
    ring = dict(ds__packing_samples=True, ds__ring_attn_size=2, ckpt__save_steps=2, train__max_steps=5)
    unbroken, short = bench / "ring-unbroken", bench / "ring-short"
    two_ranks.run(run, flags(bench / "model", bench / "rows.jsonl", unbroken, **ring))
    words = flags(bench / "model", bench / "rows.jsonl", short, **ring)
    with pytest.raises(RankError, match="rank 0:\nthe process ended with exit code 69"):
        two_ranks.run(run_of_which_a_rank_is_short, words, 1, 7)
    said = "".join(two_ranks.run(said_by_run, [*words, "--ckpt.load_enable"]))
    assert "memory.json: micro-batches are cut to 1/2" in said
    assert [one["loss"] for one in step_lines(short)] == pytest.approx(
        [one["loss"] for one in step_lines(unbroken)], rel=1e-6
    )


def test_an_allocator_that_refuses_costs_a_step_and_no_result(bench, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))  # what is freed is given back
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # a thread's own would take 64 MiB
    settings = dict(ds__zero_stage=0, data__max_len=512, train__micro_batch_size=4, train__max_epochs=2)
    model, rows = bench / "wide", bench / "long.jsonl"
    pieces = settings | dict(train__micro_batch_size=1, model__gradient_checkpointing_enable=True)
    with RankPool(1, imports_itself=True) as rank:
        ((least, most, (code, text)),) = rank.run(
            run_in_less_address_space,
            flags(model, rows, bench / "pieces", **pieces),
            flags(model, rows, bench / "whole", **settings),
            flags(model, rows, bench / "limited", **settings),
        )
    assert most - least > 100, f"the limit lies half way between {least} and {most} MiB: too close to either run"
    assert code == 0, text
    (shortage,) = [line for line in read_metrics(bench / "limited") if "out_of_memory" in line]
    assert shortage["micro_batches_cut_to"] == 0.5
    limited, whole = ([one["loss"] for one in step_lines(bench / name)] for name in ("limited", "whole"))
    assert limited == pytest.approx(whole, rel=1e-6)
